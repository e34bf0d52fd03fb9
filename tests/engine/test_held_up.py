"""A row that somebody holds in an open transaction holds up itself alone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, one_stage, status_of, value
from kit.servers import DEADLINE
from outbox import Backoff, Pipeline, Reject, Retry, Run, WaitForChildren, Worker
from outbox.engine import committer, holders

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]

OTHERS = 5

HELD = {
    "changed data": "UPDATE outbox.workflow_states SET metadata = metadata || '{\"n\": 1}' WHERE entity_id = 'held'",
    "a changed status": "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = 'held'",
    "a row lock": "SELECT FROM outbox.workflow_states WHERE entity_id = 'held' FOR UPDATE",
    "a lock on the job": """SELECT FROM outbox.jobs AS j JOIN outbox.workflow_states AS w ON w.id = j.workflow_id
        WHERE w.entity_id = 'held' FOR UPDATE OF j""",
}


@contextmanager
def open_transaction(connect: Connect, statement: str) -> Iterator[Conn]:
    """Yields a session that has run a statement and has not committed it."""
    session = connect(autocommit=False)
    session.execute("SET application_name = 'psql'")
    session.execute(statement.encode())
    yield session
    session.rollback()


def work_until(worker: Worker, condition: Callable[[], bool]) -> None:
    """Runs a worker in this process until a condition holds."""

    async def run() -> None:
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.02)
        worker.stop()
        await running

    asyncio.run(run())


def all_but(conn: Conn, *, status: str = "DONE", count: int = OTHERS) -> Callable[[], bool]:
    return lambda: (
        value(
            conn,
            "SELECT count(*) FROM outbox.workflow_states WHERE current_status = %s AND entity_id <> 'held'",
            status,
        )
        == count
    )


def submit(conn: Conn, pipeline: Pipeline[Any]) -> None:
    pipeline.submit_many(conn, ((name, Post()) for name in ["held", *(f"e{n}" for n in range(OTHERS))]))


@pytest.mark.parametrize("held", HELD)
def test_a_held_row_holds_up_its_own_commit_alone(conn: Conn, dsn: str, connect: Connect, held: str) -> None:
    calls: list[str] = []
    session = connect(autocommit=False)

    async def work(run: Run[Post]) -> None:
        if run.entity_id == "held":
            session.execute(HELD[held].encode())
        calls.append(run.entity_id)

    pipeline = deployed(conn, one_stage(work))
    submit(conn, pipeline)
    done, freed = all_but(conn), []

    def condition() -> bool:
        if not freed and done() and "held" in calls:
            session.rollback()
            freed.append(True)
        return bool(freed) and status_of(conn, "held") == "DONE"

    work_until(Worker(pipeline, dsn, grace=1), condition)
    assert calls.count("held") == 1, "what was held up is committed, and does not run again"


@pytest.mark.parametrize("error", [RuntimeError, Reject, Retry])
def test_a_held_job_holds_up_its_own_failure_alone(
    conn: Conn, dsn: str, connect: Connect, error: type[Exception]
) -> None:
    session = connect(autocommit=False)

    async def work(run: Run[Post]) -> None:
        if run.entity_id == "held" and run.attempt == 1:
            session.execute(HELD["a changed status"].encode())
        raise Retry(after=3600) if error is Retry else error("no")

    pipeline = deployed(conn, one_stage(work, retry=Backoff(first=3600, max=3600, attempts=2)))
    submit(conn, pipeline)
    ended = """SELECT count(*) FROM outbox.workflow_states AS w WHERE entity_id <> 'held'
        AND NOT EXISTS (SELECT FROM outbox.jobs AS j WHERE j.workflow_id = w.id AND j.owner IS NOT NULL)"""
    mine = "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL"
    freed: list[bool] = []

    def condition() -> bool:
        if not freed and value(conn, ended) == OTHERS and value(conn, mine) == 1:
            session.rollback()
            freed.append(True)
        return bool(freed) and value(conn, mine) == 0

    work_until(Worker(pipeline, dsn, grace=1), condition)
    dead = value(conn, "SELECT count(*) FROM outbox.dead_jobs")
    assert dead == (OTHERS + 1 if error is Reject else 0)


def test_a_held_parent_holds_up_the_end_of_its_own_child_alone(conn: Conn, dsn: str, connect: Connect) -> None:
    """The row that is held is not the child's own: its commit waits for its parent within the trigger."""
    parent: Pipeline[Any] = Pipeline("parent", initial="A", final={"DONE"})
    kids: Pipeline[Post] = one_stage(lambda run: None)

    @parent.stage("start", on="A", to="WAITING")
    async def start(run: Run[Any]) -> WaitForChildren:
        run.spawn(kids, "held", Post())
        return WaitForChildren(to="DONE", status="WAITING")

    parent.allow("WAITING", to="DONE")
    deployed(conn, kids)
    deployed(conn, parent).submit(conn, "mum", {})
    waiting = lambda: status_of(conn, "mum") == "WAITING"  # noqa: E731
    work_until(Worker(parent, dsn, grace=1), waiting)
    with open_transaction(connect, "SELECT FROM outbox.workflow_states WHERE entity_id = 'mum' FOR UPDATE") as session:
        submit(conn, kids)
        done, freed = all_but(conn), []

        def condition() -> bool:
            if not freed and done():
                session.rollback()
                freed.append(True)
            return bool(freed) and status_of(conn, "mum") == "DONE"

        work_until(Worker([parent, kids], dsn, grace=1), condition)


def test_a_held_row_holds_up_the_in_progress_status_of_no_other(conn: Conn, dsn: str, connect: Connect) -> None:
    calls: list[str] = []

    async def work(run: Run[Post]) -> None:
        calls.append(run.entity_id)

    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", running="WORKING", to="DONE")(work)
    submit(conn, deployed(conn, pipeline))
    with open_transaction(connect, HELD["a row lock"]):
        work_until(Worker(pipeline, dsn, grace=0), all_but(conn))
    assert "held" not in calls


@pytest.mark.parametrize("batch", [None, 3])
def test_a_transaction_that_meets_a_held_row_is_put_back_and_counted(
    conn: Conn, dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, batch: int | None
) -> None:
    monkeypatch.setattr("outbox.engine.commit.LOCK_WAIT_IN_TRANSACTION", 0.05)

    async def work(run: Any) -> None: ...

    pipeline = deployed(conn, one_stage(work, transaction=True, **({"batch": batch} if batch else {})))
    submit(conn, pipeline)
    put_back = "SELECT released, attempt FROM outbox.jobs WHERE owner IS NULL AND released > 0"
    with open_transaction(connect, HELD["a row lock"]):
        work_until(
            Worker(pipeline, dsn, grace=1),
            lambda: all_but(conn)() and conn.execute(put_back.encode()).fetchone() is not None,
        )
        assert conn.execute(put_back.encode()).fetchone() == (1, 0)


def test_the_log_names_the_session_that_holds_a_row(
    conn: Conn, dsn: str, connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "LONG", 0.0)
    caplog.set_level(logging.WARNING, "outbox.worker")

    async def work(run: Run[Post]) -> None: ...

    pipeline = deployed(conn, one_stage(work))
    submit(conn, pipeline)
    with open_transaction(connect, HELD["changed data"]) as session:
        pid = session.info.backend_pid
        told = f"p.work held: held up by the transaction of pid {pid} (psql, idle in transaction"
        work_until(Worker(pipeline, dsn, grace=0.1), lambda: any(told in line for line in caplog.messages))
    assert sum(told in line for line in caplog.messages) == 1, "once in a while"


@pytest.mark.parametrize("tried", ["now and then", "all the time"])
def test_what_is_held_up_at_the_end_runs_again_at_no_cost(
    conn: Conn, dsn: str, connect: Connect, monkeypatch: pytest.MonkeyPatch, tried: str
) -> None:
    if tried == "all the time":
        monkeypatch.setattr(committer, "HELD_UP_FIRST", 0.0)

    async def work(run: Run[Post]) -> None: ...

    pipeline = deployed(conn, one_stage(work))
    submit(conn, pipeline)
    with open_transaction(connect, HELD["a row lock"]), suppress(TimeoutError):
        work_until(Worker(pipeline, dsn, grace=0.1), all_but(conn))
    assert conn.execute("SELECT attempt, owner FROM outbox.jobs").fetchall() == [(0, None)]
