"""What a drain in the caller's transaction does, and what it leaves there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from kit.pipelines import QUICK, Post, deployed, make_posts, one_stage, status_of, value
from outbox import (
    Backoff,
    Blob,
    Change,
    Go,
    HandlerError,
    InvalidInput,
    NotDeployed,
    Pipeline,
    Reject,
    Retry,
    Run,
    SyncRun,
    Tick,
    WaitForApproval,
    WaitForChildren,
    WaitForSignal,
    approve,
    deploy,
    signal,
)  # fmt: skip
from outbox.testing import drain, drain_async

Conn = psycopg.Connection[Any]


@pytest.fixture
def inside(conn: Conn) -> Conn:
    """A connection that commits nothing unless it is told to."""
    conn.autocommit = False
    return conn


def started(conn: Conn, pipeline: Pipeline[Any], *entities: str, data: Any = None) -> Pipeline[Any]:
    deploy(conn, pipeline)
    pipeline.submit_many(conn, [(entity, data or Post()) for entity in entities or ("a",)])
    return pipeline


def seen_by_others(connect: Callable[..., Conn]) -> tuple[Any, ...]:
    count = (
        "SELECT (SELECT count(*) FROM outbox.{}), (SELECT count(*) FROM outbox.{}), (SELECT count(*) FROM outbox.{})"
    )
    row = connect().execute(count.format("workflow_states", "jobs", "workers").encode()).fetchone()
    assert row is not None
    return row


def test_a_workflow_goes_all_its_way_and_nothing_is_committed(inside: Conn, connect: Callable[..., Conn]) -> None:
    posts = started(inside, make_posts())
    counts = drain(posts, inside).counts
    assert (counts.done, status_of(inside, "a")) == (3, "COMPLETED")
    assert [change.actor[:7] for change in posts.history(inside, "a")[1:]] == ["worker-"] * 3
    assert value(inside, "SELECT count(*) FROM outbox.messages") == 1
    inside.rollback()
    assert seen_by_others(connect) == (0, 0, 0)


def test_the_session_is_as_it_was(inside: Conn) -> None:
    inside.execute(
        "SET search_path = outbox; SET LOCAL outbox.actor = 'sarah'; SET DateStyle = 'German'; SET lock_timeout = 7000"
    )
    inside.row_factory = dict_row  # type: ignore[assignment]
    names = ["search_path", "outbox.actor", "outbox.reason", "outbox.worker", "outbox.claim", "datestyle", "lock_timeout",
             "enable_seqscan", "role", "idle_in_transaction_session_timeout"]  # fmt: skip

    def settings() -> dict[str, Any]:
        return {
            name: (inside.execute("SELECT current_setting(%s, true) AS s", [name]).fetchone() or {})["s"] or ""
            for name in names
        }  # type: ignore[call-overload]

    before = settings()

    def work(run: Run[Post]) -> None:
        run.connection.execute("SET LOCAL search_path = public")

    posts = started(inside, one_stage(work, transaction=True))
    drain(posts, inside)
    assert settings() == before
    posts.submit(inside, "b", Post())
    assert posts.history(inside, "b")[0].actor == "sarah"


def test_what_a_transactional_handler_writes_commits_with_its_step_or_not_at_all(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        run.connection.execute("INSERT INTO outbox.messages (topic) VALUES (%s)", [run.entity_id])
        if run.entity_id == "bad":
            run.connection.execute("SELECT 1/0")

    p = started(inside, one_stage(work, transaction=True), "good", "bad")
    with pytest.raises(psycopg.errors.DivisionByZero) as raised:
        drain(p, inside)
    assert raised.traceback[-1].path.name != "sequence.py"
    assert "test_sequence.py" in {frame.path.name for frame in raised.traceback}
    assert (status_of(inside, "good"), status_of(inside, "bad")) == ("DONE", "NEW")
    assert value(inside, "SELECT array_agg(topic) FROM outbox.messages") == ["good"]
    assert value(inside, "SELECT attempt FROM outbox.jobs") == 1


def test_a_handler_that_commits_is_told(inside: Conn) -> None:
    p = started(inside, one_stage(lambda run: run.connection.commit(), transaction=True))
    with pytest.raises(psycopg.ProgrammingError, match="commit"):
        drain(p, inside)
    assert status_of(inside, "a") == "NEW"


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(2)])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_handler_s_own_exception_is_raised_and_the_transaction_goes_on(
    inside: Conn, error: BaseException, is_async: bool
) -> None:
    def work(run: Run[Post]) -> None:
        raise error

    async def work_async(run: Run[Post]) -> None:
        raise error

    p = started(inside, one_stage(work_async if is_async else work))
    with pytest.raises(type(error)) as raised:
        drain(p, inside)
    assert raised.value is error
    assert value(inside, "SELECT error LIKE %s FROM outbox.jobs", f"{type(error).__name__}%")
    assert value(inside, "SELECT count(*) FROM outbox.workers") == 0


def test_retry_and_reject_are_no_errors(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        if run.entity_id == "later":
            raise Retry(after=3600)
        raise Reject("no")

    p = started(inside, one_stage(work), "later", "never")
    counts = drain(p, inside).counts
    assert (counts.retried, counts.dead) == (1, 1)


def test_without_raise_errors_the_failure_is_only_written(inside: Conn) -> None:
    p = started(inside, one_stage(lambda run: 1 / 0, retry=Backoff(first=60)))
    assert drain(p, inside, raise_errors=False).counts.retried == 1
    assert value(inside, "SELECT NOT due AND run_at > clock_timestamp() + interval '30 s' FROM outbox.jobs")


def test_with_retries_attempts_follow_at_once_and_the_last_failure_is_raised(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        if run.entity_id == "never" or run.attempt < 3:
            raise KeyError(run.attempt)

    p = started(inside, one_stage(work, retry=Backoff(first=3600, max=3600, attempts=4)), "third")
    assert drain(p, inside, retries=True).counts.retried == 2
    assert status_of(inside, "third") == "DONE"
    p.submit(inside, "never", Post())
    with pytest.raises(KeyError, match="4"):
        drain(p, inside, retries=True)


def test_what_is_scheduled_for_later_is_left(inside: Conn) -> None:
    p = Pipeline[Any]("p", initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="LATER")(lambda run: Go("LATER", after=timedelta(hours=1)))
    p.stage("later", on="LATER", to="DONE")(lambda run: None)
    started(inside, p, data={"a": 1})
    drain(p, inside, retries=True)
    assert status_of(inside, "a") == "LATER"


def test_until_leaves_workflows_in_a_status(inside: Conn) -> None:
    posts = started(inside, make_posts())
    drain(posts, inside, until="APPROVED")
    assert status_of(inside, "a") == "APPROVED"
    drain(posts, inside, until={"RECEIVED", "COMPLETED"})
    assert status_of(inside, "a") == "COMPLETED"


def test_waits_children_and_reactions(inside: Conn) -> None:
    told: list[str] = []
    lines: Pipeline[Any] = Pipeline("lines", initial="NEW", final={"DONE"})
    lines.stage("work", on="NEW", to="DONE")(lambda run: None)
    orders: Pipeline[Any] = Pipeline("orders", initial="NEW", final={"DONE", "LOST"})

    @orders.stage("split", on="NEW", to="JOINING")
    def split(run: Run[Any]) -> WaitForChildren[Any]:
        run.spawn(lines, "line_1", {})
        return WaitForChildren(to="PAYING")

    @orders.stage("pay", on="PAYING", to="PAY")
    async def pay(run: Run[Any]) -> WaitForSignal[Any]:
        return WaitForSignal("paid", to="ASKING")

    @orders.stage("ask", on="ASKING", to="ASK")
    def ask(run: Run[Any]) -> WaitForApproval[Any]:
        return WaitForApproval("Sure?", options={"approve": "DONE"}, deadline=timedelta(0), on_deadline="LOST")

    @orders.on_change("JOINING", "LOST")
    def tell(run: Run[Change]) -> None:
        told.append(run.data.status)

    orders.allow("JOINING", to="PAYING")
    orders.allow("PAY", to="ASKING")
    orders.allow("ASK", to={"DONE", "LOST"})
    deploy(inside, [lines, orders])
    orders.submit(inside, "a", {})
    drain([orders, lines], inside)
    assert status_of(inside, "a") == "PAY"
    signal(inside, "orders", "a", "paid")
    drain([orders, lines], inside)
    assert (status_of(inside, "a"), sorted(told)) == ("LOST", ["JOINING", "LOST"])


def test_a_tick_that_is_due_runs_once(inside: Conn) -> None:
    shop: Pipeline[Any] = Pipeline("shop", initial="NEW", final={"DONE"})

    @shop.every("0 3 * * *")
    def nightly(tick: Tick) -> None:
        shop.submit(tick.connection, tick.at.isoformat(), {})

    shop.stage("work", on="NEW", to="DONE")(lambda run: None)
    deploy(inside, shop)
    inside.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 hour'")
    drain(shop, inside)
    drain(shop, inside)
    assert value(inside, "SELECT array_agg(current_status) FROM outbox.workflow_states") == ["DONE"]


def test_a_tick_that_raises_is_raised_and_tried_again(inside: Conn) -> None:
    shop: Pipeline[Any] = Pipeline("shop", initial="NEW", final={"DONE"})
    shop.every("0 3 * * *", name="nightly")(lambda tick: 1 / 0)
    deploy(inside, shop)
    inside.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 hour'")
    with pytest.raises(ZeroDivisionError):
        drain(shop, inside)
    assert value(inside, "SELECT error LIKE 'ZeroDivisionError%%' AND attempts = 1 FROM outbox.schedules")


def test_kept_results_stay_when_the_attempt_is_rolled_back(inside: Conn) -> None:
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        return 7

    def work(run: Run[Post]) -> Post:
        found = run.once("call", call)
        if run.attempt == 1:
            run.connection.execute("SELECT 1/0")
        return Post(content=str(found))

    async def plainly(run: Run[Post]) -> Post:
        return Post(content=str(await run.once("call", call)) + run.data.content)

    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="THEN", transaction=True, retry=QUICK)(work)
    p.stage("then", on="THEN", to="DONE")(plainly)
    started(inside, p)
    drain(p, inside, retries=True)
    assert (len(calls), p.get(inside, "a").data) == (2, Post(content="77"))  # type: ignore[union-attr]


def test_large_contents_stay_when_the_attempt_is_rolled_back(inside: Conn) -> None:
    stored: list[Blob] = []

    def work(run: SyncRun[Post]) -> Post:
        if run.attempt == 1:
            stored.append(run.store(b"content" * 10_000))
            run.connection.execute("SELECT 1/0")
        return Post(content=run.load(stored[0])[:7].decode())

    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="DONE", transaction=True, retry=QUICK)(work)
    started(inside, p)
    drain(p, inside, retries=True)
    assert p.get(inside, "a").data == Post(content="content")  # type: ignore[union-attr]


def test_batches_limits_and_running_statuses(inside: Conn) -> None:
    sizes: list[int] = []

    def work(runs: list[Run[Post]]) -> None:
        sizes.append(len(runs))

    p = started(inside, one_stage(work, transaction=True, batch=2, running="WORKING"), "a", "b", "c")
    drain(p, inside)
    assert sorted(sizes) == [1, 2]
    seen: list[str] = []
    q: Pipeline[Any] = Pipeline("q", initial="NEW", final={"DONE"})
    q.stage("work", on="NEW", to="DONE", concurrency=1, rate="100/second", running="BUSY")(
        lambda run: seen.append(run.status)
    )
    deploy(inside, q)
    q.submit_many(inside, [(str(n), {}) for n in range(5)])
    drain(q, inside)
    assert seen == ["BUSY"] * 5


def test_an_error_in_a_batch_is_that_of_its_run(inside: Conn) -> None:
    def work(runs: list[Run[Post]]) -> None:
        for run in runs:
            run.connection.execute("INSERT INTO outbox.messages (topic) VALUES (%s)", [run.entity_id])
            if run.entity_id == "bad":
                raise KeyError("bad")

    p = started(inside, one_stage(work, transaction=True, batch=9), "good", "bad")
    with pytest.raises(KeyError):
        drain(p, inside)
    assert value(inside, "SELECT array_agg(topic) FROM outbox.messages") == ["good"]


def test_an_error_that_a_plain_handler_leaves_in_the_transaction_is_rolled_back(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        inside.execute("INSERT INTO outbox.messages (topic) VALUES ('t')")
        inside.execute("SELECT 1/0")

    p = started(inside, one_stage(work, retry=Backoff(first=60)))
    assert drain(p, inside, raise_errors=False).counts.retried == 1
    assert value(inside, "SELECT count(*) FROM outbox.messages") == 0


def test_data_that_does_not_fit_and_results_that_are_none_are_raised(inside: Conn) -> None:
    p = started(inside, one_stage(lambda run: Go("NOWHERE")))
    with pytest.raises(HandlerError, match="NOWHERE"):
        drain(p, inside)
    inside.execute("UPDATE outbox.workflow_states SET metadata = '[]'")
    with pytest.raises(HandlerError, match="doesn't fit"):
        drain(p, inside, retries=True)


def test_a_change_that_the_deployed_pipeline_does_not_know_puts_the_job_back(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        inside.execute("DELETE FROM outbox.legal_changes WHERE to_status = 'DONE'")

    p = started(inside, one_stage(work))
    drain(p, inside)
    assert value(inside, "SELECT error LIKE 'illegal change%%' FROM outbox.jobs")


def test_a_handler_that_changes_its_own_workflow_runs_again(inside: Conn) -> None:
    def work(run: Run[Post]) -> None:
        if run.data.content == "hello":
            inside.execute("""UPDATE outbox.workflow_states SET metadata = '{"content": "new"}'""")

    p = started(inside, one_stage(work))
    drain(p, inside)
    assert status_of(inside, "a") == "DONE"


def test_what_can_not_be_done_in_a_transaction_is_said(inside: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None: ...

    p = started(inside, one_stage(work, transaction=True))
    with pytest.raises(InvalidInput, match=r"is sync, and stage p\.work"):
        drain(p, inside)
    assert value(inside, "SELECT attempt FROM outbox.jobs WHERE owner IS NULL") == 0
    with inside.pipeline(), pytest.raises(InvalidInput, match="is in pipeline mode"):
        drain(p, inside)
    with pytest.raises(InvalidInput, match="concurrency is for a worker"):
        drain(p, inside, concurrency=3)
    with pytest.raises(NotDeployed):
        drain(make_posts(), inside)
    inside.commit()
    inside.autocommit = True
    with pytest.raises(InvalidInput, match="is in autocommit, and no transaction is open"):
        drain(p, inside)
    with pytest.raises(InvalidInput, match="must be a connection"):
        drain(p, object())
    with inside.transaction():
        drain(started(inside, make_posts()), inside)
        raise psycopg.Rollback
    assert value(inside, "SELECT count(*) FROM outbox.workflow_states") == 1
    inside.autocommit = False
    with pytest.raises(psycopg.errors.DivisionByZero):
        inside.execute("SELECT 1/0")
    with pytest.raises(InvalidInput, match="has failed"):
        drain(p, inside)


def test_an_async_connection(dsn: str, conn: Conn) -> None:
    threads: list[threading.Thread] = []

    def enrich(run: Run[Post]) -> Post:
        threads.append(threading.current_thread())
        return Post(content=run.once("call", str, 5))

    async def act(run: Run[Post]) -> None:
        await run.connection.execute("INSERT INTO outbox.messages (topic) VALUES ('act')")
        if run.attempt == 1:
            raise KeyError("x")

    posts = Pipeline("posts", data=Post, initial="NEW", final={"COMPLETED"})
    posts.stage("enrich", on="NEW", to="APPROVED")(enrich)
    posts.stage("act", on="APPROVED", to="COMPLETED", transaction=True, retry=QUICK)(act)
    deployed(conn, posts)

    async def test() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            await posts.submit(other, "a", Post())
            with pytest.raises(KeyError):
                await drain_async(posts, other)
            await drain_async(posts, other, retries=True)
            found = await posts.get(other, "a")
            assert found is not None
            assert (found.status, found.data) == ("COMPLETED", Post(content="5"))
            cursor = await other.execute("SELECT count(*) FROM outbox.messages")
            assert await cursor.fetchone() == (1,)
            await other.rollback()
            with pytest.raises(InvalidInput, match="is async: await"):
                drain(posts, other)
        with pytest.raises(InvalidInput, match="is sync: call"):
            await drain_async(posts, conn)

    asyncio.run(test())
    assert threads[0] is not threading.main_thread()


def test_an_async_handler_has_its_timeout(inside: Conn) -> None:
    async def work(run: Run[Post]) -> None:
        await asyncio.Event().wait()

    p = started(inside, one_stage(work, timeout=0.01))
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        drain(p, inside)


def test_an_approval_in_the_transaction(inside: Conn) -> None:
    posts = started(inside, make_posts(), data=Post(content="risky"))
    drain(posts, inside)
    posts2 = Pipeline[Any]("asking", initial="NEW", final={"YES", "NO"})
    posts2.stage("ask", on="NEW", to="ASKED")(
        lambda run: WaitForApproval("?", options={"approve": "YES", "reject": "NO"})
    )
    posts2.allow("ASKED", to={"YES", "NO"})
    deploy(inside, posts2)
    posts2.submit(inside, "b", {})
    drain(posts2, inside)
    approve(inside, "asking", "b", by="sarah")
    assert status_of(inside, "b") == "YES"


def test_what_is_called_after_the_commit_is_called_after_the_step_and_lifespans_are_open(inside: Conn) -> None:
    told: list[Any] = []

    @contextmanager
    def lifespan() -> Iterator[str]:
        yield "client"
        told.append("closed")

    def work(run: Run[Post]) -> None:
        run.on_commit(lambda: told.append(run.resources))
        if run.attempt == 1:
            raise KeyError("x")

    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"}, lifespan=lifespan)
    p.stage("work", on="NEW", to="DONE", transaction=True, retry=QUICK)(work)
    drain(started(inside, p), inside, retries=True)
    assert told == ["client", "closed"]
