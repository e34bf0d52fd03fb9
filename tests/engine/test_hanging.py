"""Handlers that don't end: they take neither other stages along nor what waits behind them, and the worker says so."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from kit.pipelines import QUICK, Post, deployed, drain, one_stage, run_one, status_of, value
from kit.pooler import way
from kit.servers import DEADLINE, wait_for
from outbox import Backoff, Pipeline, Run, Worker, WorkerBroken
from outbox.engine import handlers
from outbox.operations import doctor
from outbox.process import threads

Conn = psycopg.Connection[Any]
LATER = Backoff(first=3600, max=3600, attempts=4)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs waits for this, and ends with the test."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture(autouse=True)
def _soon_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "LOST_AFTER", 0.2)


def test_what_waits_behind_threads_that_hang_burns_no_attempt_and_the_worker_says_why_it_ends(
    conn: Conn, dsn: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []

    def work(run: Run[Post]) -> None:
        called.append(run.entity_id)
        if run.entity_id.startswith("hang"):
            gate.wait(DEADLINE)

    pipeline = deployed(conn, one_stage(work, timeout=0.2, concurrency=2, retry=LATER))
    pipeline.submit_many(conn, ((entity, Post()) for entity in ("hang1", "hang2", "good1", "good2", "good3")))
    with pytest.raises(WorkerBroken, match=r"stage p\.work has no slot left.*hang1, hang2.*start a new process"):
        drain(pipeline, dsn)
    assert sorted(called) == ["hang1", "hang2"]
    left = (
        "SELECT w.entity_id, j.attempt, j.owner FROM outbox.jobs j JOIN outbox.workflow_states w ON w.id = workflow_id"
    )
    assert sorted(conn.execute(left.encode()).fetchall()) == [
        ("good1", 0, None), ("good2", 0, None), ("good3", 0, None), ("hang1", 1, None), ("hang2", 1, None),
    ]  # fmt: skip
    lost = [record.getMessage() for record in caplog.records if "its slot is lost" in record.getMessage()]
    assert lost == ["p.work hang1 hangs in its thread; its slot is lost (1 of 2)",
                    "p.work hang2 hangs in its thread; its slot is lost (2 of 2)"]  # fmt: skip
    assert "its thread goes on" in value(conn, "SELECT min(error) FROM outbox.jobs WHERE attempt = 1")
    found = [finding.what for finding in doctor.examine(conn) if "can't be interrupted" in finding.what]
    assert [what.split(" ran")[0] for what in found] == ["2 jobs of p.work (0 dead)"]
    drain(pipeline, dsn)
    assert status_of(conn, "good3") == "DONE", "a new worker does the rest"


def test_a_function_that_goes_on_after_its_timeout_keeps_the_slot_of_its_stage(conn: Conn, dsn: str) -> None:
    running = peak = 0
    turn = threading.Event()
    lock = threading.Lock()

    def work(run: Run[Post]) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        if run.attempt == 1:
            wait_for(lambda: value(other, "SELECT count(*) FROM outbox.jobs WHERE error LIKE 'TimeoutError%%'"))
            turn.wait(0.1)  # time for a second one to begin, if one may
        with lock:
            running -= 1

    with psycopg.connect(dsn, autocommit=True) as other:
        run_one(conn, dsn, work, timeout=0.1, concurrency=1, retry=QUICK)
    assert peak == 1
    assert value(conn, "SELECT attempt FROM outbox.state_changes WHERE to_status = 'DONE'") == 2


def test_no_other_worker_begins_what_a_thread_goes_on_with_where_the_stage_has_a_limit(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "LOST_AFTER", DEADLINE)
    running = peak = 0
    lock = threading.Lock()

    def work(run: Run[Post]) -> None:
        nonlocal running, peak
        with lock:
            running += 1
            peak = max(peak, running)
        time.sleep(0.4)
        with lock:
            running -= 1

    pipeline = deployed(conn, one_stage(work, timeout=0.1, concurrency=1, retry=Backoff(attempts=1)))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(3)))

    async def main() -> None:
        workers = [Worker(pipeline, **way(dsn)) for _ in range(3)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        dead = "SELECT count(*) = 3 FROM outbox.dead_jobs"
        await asyncio.to_thread(wait_for, lambda: value(conn, dead))
        for worker in workers:
            worker.stop()
        await asyncio.gather(*running)

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert peak == 1
    assert value(conn, "SELECT min(error) FROM outbox.dead_jobs").startswith("TimeoutError: no outcome within")


def test_a_stage_that_hangs_holds_up_no_other_stage(
    conn: Conn, dsn: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "LOST_AFTER", 3600)
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})

    @pipeline.stage("hang", on="NEW", to="MID", timeout=0.1, retry=LATER)
    def hang(run: Run[Post]) -> None:
        gate.wait(DEADLINE)

    @pipeline.stage("work", on="MID", to="DONE", timeout=60)
    def work(run: Run[Post]) -> None: ...

    deployed(conn, pipeline)
    pipeline.allow("NEW", to={"MID"})
    pipeline.submit(conn, "hangs", Post())
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(20)))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MID' WHERE entity_id <> 'hangs'")
    assert drain(pipeline, dsn, concurrency=2).left == ["p.hang hangs"]
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 20


def test_a_coroutine_that_swallows_its_cancellation_is_counted_and_named(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    over = False

    async def work(run: Run[Post]) -> None:
        while run.entity_id == "swallows" and not over:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    pipeline = deployed(conn, one_stage(work, timeout=0.1, retry=LATER))
    pipeline.submit(conn, "swallows", Post())
    pipeline.submit(conn, "good", Post())
    worker = Worker(pipeline, **way(dsn), drain=True, concurrency=1)

    async def main() -> None:
        nonlocal over
        with pytest.raises(WorkerBroken, match=r"no slot left.*swallows"):
            await worker.run()
        over = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert worker.left == ["p.work swallows"]
    assert "p.work swallows swallows its cancellation; its slot is lost (1 of 1)" in caplog.text
    assert "still running, though the worker has stopped: p.work swallows" in caplog.text
    drain(pipeline, dsn)
    assert status_of(conn, "good") == "DONE"


def test_a_slot_that_comes_back_is_said_and_used(conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def work(run: Run[Post]) -> None:
        if run.entity_id == "late":
            wait_for(lambda: "its slot is lost" in caplog.text, what="its slot is given up")

    pipeline = deployed(conn, one_stage(work, timeout=0.1, concurrency=2, retry=LATER))
    worker = Worker(pipeline, **way(dsn))

    async def main() -> None:
        running = asyncio.create_task(worker.run())
        await pipeline.submit(aconn, "late", Post())
        await asyncio.to_thread(wait_for, lambda: "its slot is free" in caplog.text)
        worker.stop()
        await running

    async def connected() -> None:
        nonlocal aconn
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as aconn:
            await main()

    aconn: Any = None
    asyncio.run(asyncio.wait_for(connected(), DEADLINE))
    assert worker.left == []
    assert "p.work late has ended after all; its slot is free" in caplog.text


def test_a_job_for_which_there_is_no_thread_burns_no_attempt(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scarce(threading.Thread):
        refused = 0

        def start(self) -> None:
            if self.name == "outbox p.work" and not Scarce.refused:
                Scarce.refused += 1
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(threads.threading, "Thread", Scarce)  # type: ignore[attr-defined]
    attempts: list[int] = []

    def work(run: Run[Post]) -> None:
        attempts.append(run.attempt)

    run_one(conn, dsn, work)
    assert (attempts, Scarce.refused) == ([1], 1)


# Workers that are cancelled, or stopped before they run.


def test_a_worker_that_is_cancelled_cancels_its_handlers_and_releases_their_jobs(conn: Conn, dsn: str) -> None:
    ended: list[str] = []
    effects: list[str] = []

    async def work(run: Run[Post]) -> None:
        try:
            await asyncio.sleep(3600)
            effects.append(run.entity_id)
        finally:
            await asyncio.sleep(0)
            ended.append(run.entity_id)

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(3)))

    async def main() -> None:
        running = asyncio.create_task(Worker(pipeline, **way(dsn), concurrency=2).run())
        held = "SELECT count(*) = 2 FROM outbox.jobs WHERE owner IS NOT NULL"
        await asyncio.to_thread(wait_for, lambda: value(conn, held))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert len(ended) == 2
        assert len(asyncio.all_tasks()) == 2, "this one, and the one that waits for it"

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert effects == []
    assert conn.execute("SELECT DISTINCT owner, attempt FROM outbox.jobs").fetchall() == [(None, 0)]
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0


@pytest.mark.parametrize("turns", [0, 5, 40])
def test_a_worker_that_is_stopped_or_cancelled_as_it_begins_leaves_no_row(conn: Conn, dsn: str, turns: int) -> None:
    async def work(run: Run[Post]) -> None: ...

    pipeline = deployed(conn, one_stage(work))

    async def main(how: str) -> None:
        worker = Worker(pipeline, **way(dsn))
        if not turns:
            worker.stop()
        running = asyncio.create_task(worker.run())
        for _ in range(turns):
            await asyncio.sleep(0.001)
        worker.stop() if how == "stop" else running.cancel()
        await asyncio.wait((running,))

    for how in ("stop", "cancel"):
        asyncio.run(asyncio.wait_for(main(how), DEADLINE))
        assert value(conn, "SELECT count(*) FROM outbox.workers") == 0, how


# What surrounds a handler.

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")


@pytest.mark.parametrize("colour", ["async", "sync"])
@pytest.mark.parametrize("transaction", [False, True])
def test_context_variables_reach_a_handler_and_none_is_left_for_the_next(
    conn: Conn, dsn: str, colour: str, transaction: bool
) -> None:
    seen: list[tuple[str, int]] = []

    def work(run: Run[Post]) -> None:
        seen.append((tenant.get(), decimal.getcontext().prec))
        tenant.set(run.entity_id)
        decimal.setcontext(decimal.Context(prec=7))

    async def work_async(run: Run[Post]) -> None:
        work(run)

    pipeline = deployed(conn, one_stage(work if colour == "sync" else work_async, transaction=transaction))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(3)))

    def in_context() -> None:
        tenant.set("ours")
        decimal.setcontext(decimal.Context(prec=50))
        drain(pipeline, dsn, concurrency=1)

    contextvars.copy_context().run(in_context)
    assert seen == [("ours", 50)] * 3


# A handler that blocks the event loop.


def test_a_blocked_event_loop_is_named_and_keeps_its_lease(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture, connect: Callable[..., Conn]
) -> None:
    other = connect()
    beats: set[datetime] = set()
    late: set[bool] = set()  # whether another worker would take the lease from it
    look = b"SELECT beat_at, beat_at + lease < clock_timestamp() FROM outbox.workers, pg_sleep(0.05)"

    async def work(run: Run[Post]) -> None:
        if run.entity_id == "blocks":
            until, deadline = time.monotonic() + 4, time.monotonic() + DEADLINE
            # Mostly in the driver: the handler's line is told, not a library's.
            while time.monotonic() < until or (len(beats) < 3 and time.monotonic() < deadline):
                for beat, is_late in other.execute(look):
                    beats.add(beat)
                    late.add(is_late)
        else:
            await asyncio.sleep(0.1)

    pipeline = deployed(conn, one_stage(work, timeout=3, retry=Backoff(attempts=1)))
    pipeline.submit_many(conn, ((entity, Post()) for entity in ("innocent1", "blocks", "innocent2")))
    worker = drain(pipeline, dsn, lease=12)
    assert late == {False}
    assert len(beats) >= 3, "it kept its lease meanwhile"
    assert (worker.counts.done, worker.counts.lost) == (3, 0), caplog.text
    stood = [record.getMessage() for record in caplog.records if "stood still for" in record.getMessage()]
    assert len(stood) == 1
    assert re.match(
        r"the event loop stood still for \d\.\d s, in p\.work blocks \(test_hanging\.py:\d+ in work\)", stood[0]
    )


def test_an_event_loop_that_stands_still_for_too_long_is_given_up_with_the_reason(
    conn: Conn, dsn: str, connect: Callable[..., Conn]
) -> None:
    other, told, seen = connect(), [], []
    released = "SELECT count(*) FROM outbox.jobs WHERE owner IS NULL"
    found = b"SELECT j.attempt, j.error FROM outbox.jobs j JOIN outbox.workflow_states w ON w.id = workflow_id WHERE entity_id = %s"

    async def work(run: Run[Post]) -> None:
        if run.entity_id == "blocks":
            await asyncio.sleep(0)
            wait_for(lambda: told, what="the loop is given up")  # blocks
            # Later is too late: this worker, which lives on here, may claim what it has released.
            seen.append((value(other, released), other.execute(found, ("innocent",)).fetchone()))
        else:
            await asyncio.sleep(3600)

    pipeline = deployed(conn, one_stage(work, timeout=0.5, retry=LATER))
    pipeline.submit_many(conn, ((entity, Post()) for entity in ("innocent", "blocks")))
    worker = Worker(pipeline, **way(dsn), lease=0.5, on_standstill=lambda why: told.append(why))

    async def main() -> None:
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(wait_for, lambda: told)
        worker.stop()
        worker.stop()
        await running

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert "in p.work blocks (" in told[0]
    assert seen == [(2, (0, None))]
    attempt, error = conn.execute(found, ("blocks",)).fetchone() or (0, "")
    assert attempt == 1
    assert error.startswith("TimeoutError: the event loop stood still for")
