"""Defines the pipeline that most tests use, and queries of the database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
from pydantic import BaseModel

from kit.pooler import way
from kit.servers import DEADLINE, wait_for
from outbox import Backoff, Go, Pipeline, Run, Worker
from outbox.definition import deploy


class Post(BaseModel):
    content: str = "hello"
    enrichment: dict[str, Any] | None = None


QUICK = Backoff(first=0.01, factor=1, max=0.05, attempts=4)


def make_posts(**stages: Callable[..., Any]) -> Pipeline[Post]:
    """Returns the social media pipeline; `enrich`, `decide` and `act` may be given as functions."""
    posts = Pipeline("posts", data=Post, initial="RECEIVED", final={"COMPLETED", "REJECTED"})

    async def enrich(run: Run[Post]) -> Post:
        run.publish("posts.enriched", {"entity_id": run.entity_id})
        return run.data.model_copy(update={"enrichment": {"length": len(run.data.content)}})

    async def decide(run: Run[Post]) -> Go[Post]:
        return Go("WAITING_FOR_REVIEW" if "risky" in run.data.content else "APPROVED")

    async def act(run: Run[Post]) -> None:
        return None

    posts.stage("enrich", on="RECEIVED", to="ENRICHED", retry=QUICK)(stages.get("enrich", enrich))
    posts.stage("decide", on="ENRICHED", to={"WAITING_FOR_REVIEW", "APPROVED"}, retry=QUICK)(
        stages.get("decide", decide)
    )
    posts.stage("act", on="APPROVED", to="COMPLETED", retry=QUICK)(stages.get("act", act))
    posts.allow("WAITING_FOR_REVIEW", to={"APPROVED", "REJECTED"})
    return posts


def deployed(conn: psycopg.Connection[Any], pipeline: Pipeline[Any] | None = None) -> Pipeline[Any]:
    pipeline = pipeline or make_posts()
    deploy.deploy(conn, pipeline)
    return pipeline


def drain(pipeline: Pipeline[Any] | list[Pipeline[Any]], dsn: str, **options: Any) -> Worker:
    """Runs all that is due in this process."""
    import asyncio

    worker = Worker(pipeline, **way(dsn), drain=True, **options)
    asyncio.run(asyncio.wait_for(worker.run(), DEADLINE))
    return worker


def status_of(conn: psycopg.Connection[Any], entity: str) -> str:
    row = conn.execute("SELECT current_status FROM outbox.workflow_states WHERE entity_id = %s", [entity]).fetchone()
    assert row is not None, f"{entity} is not there"
    return str(row[0])


def value(conn: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    row = conn.execute(statement.encode(), params or None).fetchone()
    return None if row is None else row[0]


Conn = psycopg.Connection[Any]


def one_stage(handler: Callable[..., Any], *, data: Any = Post, **options: Any) -> Pipeline[Any]:
    """Returns a pipeline NEW -> DONE whose only stage is `handler`."""
    pipeline: Pipeline[Any] = Pipeline("p", data=data, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE", **{"retry": QUICK, **options})(handler)
    pipeline.allow("NEW", to="MOVED")
    return pipeline


def run_one(conn: Conn, dsn: str, handler: Callable[..., Any], **options: Any) -> Worker:
    """Deploys, submits entity "a", and runs until nothing is due, retries included."""
    pipeline = deployed(conn, one_stage(handler, **options))
    pipeline.submit(conn, "a", Post())
    return drain_all(conn, dsn, pipeline)


def drain_all(conn: Conn, dsn: str, pipeline: Pipeline[Any]) -> Worker:
    worker = drain(pipeline, dsn)
    deadline = time.monotonic() + DEADLINE
    while value(conn, "SELECT count(*) FROM outbox.jobs") and time.monotonic() < deadline:
        worker = drain(pipeline, dsn)
    return worker


LATER = Backoff(first=3600, max=3600, attempts=4)


def first_out_of_time(
    conn: Conn, dsn: str, make: Callable[..., Pipeline[Any]], entities: dict[str, Post], timeout: float = 0.1
) -> Worker:
    """Deploys, submits and runs: first attempts get a short timeout, second ones as long as they need."""
    pipeline = deployed(conn, make(timeout=timeout, retry=LATER))
    pipeline.submit_many(conn, entities.items())
    drain(pipeline, dsn)
    assert value(conn, "SELECT bool_and(error LIKE 'TimeoutError%%') FROM outbox.jobs"), "all have run out of time"
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    return drain(make(timeout=DEADLINE, retry=LATER), dsn)


def no_session_is_left(conn: Conn) -> bool:
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return bool(wait_for(lambda: value(conn, others) == 0, what="every other session has ended"))
