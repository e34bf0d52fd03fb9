"""What a type checker must make of the public API. Checked by mypy (`make check`), not run."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, assert_type
from uuid import UUID

import psycopg
import sqlalchemy
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

import outbox
from outbox import (
    Backoff,
    FailedAttempt,
    Go,
    Health,
    Inbox,
    Pipeline,
    Reject,
    Retry,
    Run,
    Signalled,
    Submitted,
    Tick,
    Worker,
)
from outbox.sqlalchemy import step_session, sync_step_session


class Post(BaseModel):
    content: str


posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED"})
assert_type(posts, Pipeline[Post])
plain = Pipeline("plain", initial="RECEIVED")
assert_type(plain, Pipeline[dict[str, Any]])
union = Pipeline("u", data=Post | dict[str, int], initial="RECEIVED")
assert_type(union, Pipeline[Any])


@posts.stage("enrich", on="RECEIVED", to="ENRICHED", retry=Backoff(attempts=3), timeout=30)
async def enrich(run: Run[Post]) -> Post:
    assert_type(run.data, Post)
    assert_type(run.entity_id, str)
    return run.data


@posts.stage("decide", on="ENRICHED", to={"A", "B"})
def decide(run: Run[Post]) -> Go[Post]:
    return Go("A")


@posts.stage("act", on="A", to={"COMPLETED", "FAILED"}, transaction=True)
async def act(run: Run[Post]) -> Go[Post]:
    await run.connection.execute("SELECT 1")
    if run.attempt > 3:
        raise Reject("too often")
    if not run.data.content:
        raise Retry(after=5)
    run.publish("posts.done", {"entity_id": run.entity_id}, key=run.idempotency_key)
    return Go("COMPLETED", run.data)


class Clients:
    limit: int = 5


@asynccontextmanager
async def clients() -> AsyncIterator[Clients]:
    yield Clients()


@contextmanager
def traced(run: Run[Post] | Tick) -> Iterator[None]:
    yield


def report(error: BaseException, failed: FailedAttempt) -> None:
    assert_type(failed.retry_in, float | None)


hooked = Pipeline("h", data=Post, initial="NEW", lifespan=clients, around=[traced], on_error=report)
Pipeline("h", data=Post, initial="NEW", lifespan=5)  # type: ignore[call-overload]


@hooked.stage("work", on="NEW", to="DONE")
async def work(run: Run[Post, Clients]) -> None:
    assert_type(run.resources, Clients)
    assert_type(run.data, Post)


async def embedded() -> None:
    async with Worker(hooked, "postgresql:///shop", around=traced, lifespan=clients, on_error=report) as worker:
        assert_type(worker, Worker)
        assert_type(worker.health(), Health)
        assert_type(worker.health().reason, str | None)
    with worker as again:
        assert_type(again, Worker)


def sync(conn: psycopg.Connection[Any]) -> None:
    assert_type(posts.submit(conn, "a", Post(content="")), Submitted)
    posts.submit(conn, "a", {"content": ""})
    posts.submit(conn, "a", 5)  # type: ignore[call-overload]
    assert_type(posts.submit_many(conn, [("a", Post(content=""))]), int)
    assert_type(Inbox("crm").accept(conn, "0198c0de-0000-7000-8000-000000000000"), bool)
    assert_type(outbox.signal(conn, posts, "a", "paid", {"sum": 5}, id="7"), Signalled)
    assert_type(outbox.decide(conn, "posts", "a", "later", by="sarah"), str)
    assert_type(outbox.approve(conn, posts, "a", by="sarah", reason="right", edit=Post(content=""), shown="ab"), str)
    assert_type(outbox.reject(conn, "posts", "a", by="tom", reason="wrong"), str)
    outbox.approve(conn, posts, "a", who="sarah")  # type: ignore[call-overload]
    outbox.reject(conn, posts, "a", by=5)  # type: ignore[call-overload]
    assert_type(outbox.migrate("postgresql:///shop"), list[str])
    assert_type(outbox.migrate(conn), list[str])
    assert_type(outbox.deploy(conn, posts), dict[str, list[str]])
    assert_type(outbox.deploy(conn, [posts, plain]), dict[str, list[str]])


def refused(conn: psycopg.Connection[Any]) -> None:
    try:
        outbox.approve(conn, posts, "a")
    except outbox.TooLate as error:
        assert_type(error.by, str | None)
        assert_type(error.at, datetime | None)
    except psycopg.DatabaseError as error:
        assert_type(outbox.error_of(error), outbox.OutboxError | None)


async def asynch(conn: psycopg.AsyncConnection[Any]) -> None:
    assert_type(await posts.submit(conn, "a", Post(content="")), Submitted)
    assert_type(await posts.submit_many(conn, []), int)
    assert_type(await Inbox("crm").accept(conn, UUID(int=0)), bool)
    assert_type(await outbox.signal(conn, posts, "a", "paid"), Signalled)
    assert_type(await outbox.decide(conn, posts, "a", "later", edit={"content": ""}), str)
    assert_type(await outbox.approve(conn, "posts", "a", by="sarah"), str)
    assert_type(await outbox.reject(conn, posts, "a", reason="wrong", shown="ab"), str)
    outbox.approve(conn, posts, "a", who="sarah")  # type: ignore[call-overload]
    assert_type(await outbox.migrate(conn), list[str])
    assert_type(await outbox.deploy(conn, posts), dict[str, list[str]])


class MySession(Session): ...


class MyAsyncSession(AsyncSession): ...


@posts.stage("act_async", on="TOLD", to="COMPLETED", transaction=True)
async def act_with_the_orm(run: Run[Post]) -> None:
    async with step_session(run, expire_on_commit=False) as session:
        assert_type(session, AsyncSession)
    async with step_session(run, class_=MyAsyncSession) as mine:
        assert_type(mine, MyAsyncSession)
    step_session(run.data)  # type: ignore[call-overload]
    run.on_commit(lambda: print("done"))
    run.on_commit(print, 1)  # type: ignore[call-arg]


def in_a_thread(tick: outbox.Tick, delivery: outbox.Delivery) -> None:
    with sync_step_session(tick) as session:
        assert_type(session, Session)
    with sync_step_session(delivery, class_=MySession) as mine:
        assert_type(mine, MySession)


def migrates(connection: sqlalchemy.Connection) -> None:
    assert_type(outbox.migrate(connection), list[str])
    assert_type(outbox.deploy(connection, posts), dict[str, list[str]])


async def migrates_async(connection: AsyncConnection, session: AsyncSession) -> None:
    assert_type(await outbox.migrate(connection), list[str])
    assert_type(await outbox.deploy(connection, posts), dict[str, list[str]])
    assert_type(await outbox.deploy(session, posts), dict[str, list[str]])
