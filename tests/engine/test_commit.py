"""The commit: only who still holds a job moves its workflow, and batches in any order don't deadlock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, one_stage, run_one, status_of, value
from kit.servers import DEADLINE, wait_for
from outbox import Pipeline, Reject, Run, Worker
from outbox.engine import claim, commit
from outbox.engine.job import Finished
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]


def test_opposite_orders_of_a_bulk_update_and_a_batch_do_not_deadlock(conn: Conn, connect: Callable[..., Conn]) -> None:
    """F25: the batch locks in the order of ids; a session that updates in the order of ids too never deadlocks with it."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(50)))
    row = conn.execute(
        "INSERT INTO outbox.workers (name, stages, lease) VALUES ('t', '{}', '1h') RETURNING id"
    ).fetchone()
    assert row is not None
    lane = Lane(pipeline.stages["work"], 100)
    statement, params = claim.request(row[0], [(lane, 50)], 0, careful=True)
    claim.receive(row[0], {("p", "work"): lane}, conn.execute(statement, params).fetchall())
    jobs = [(job, Finished("DONE", None, [])) for job in reversed(lane.waiting)]
    one, two = connect(autocommit=False), connect()
    ids = sorted(job.workflow_id for job, _ in jobs)
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[10]])
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(two.execute(*commit.finish(jobs, wait=DEADLINE)).fetchall()))
    thread.start()
    wait_for(
        lambda: value(
            conn, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", two.info.backend_pid
        )
    )
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[20]])
    one.commit()
    thread.join(DEADLINE)
    assert len(out[0]) == 48, "the two that were edited are refused, the others commit"


def test_a_status_changed_by_hand_under_a_running_job_fences_it(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> Post:
        run.publish("fenced", {})
        await asyncio.to_thread(
            conn.execute, "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = 'a'"
        )
        return Post(content="from the fenced job")

    worker = run_one(conn, dsn, work)
    assert status_of(conn, "a") == "MOVED"
    assert worker.counts.lost == 1
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 0
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "hello"


def test_metadata_changed_meanwhile_is_not_overwritten_and_burns_no_attempt(conn: Conn, dsn: str) -> None:
    seen: list[tuple[int, str]] = []

    async def work(run: Run[Post]) -> Post:
        seen.append((run.attempt, run.data.content))
        if len(seen) == 1:
            await asyncio.to_thread(
                conn.execute,
                'UPDATE outbox.workflow_states SET metadata = \'{"content": "edited by a person"}\'',
            )
        return Post(content=run.data.content + "!")

    run_one(conn, dsn, work)
    assert seen == [(1, "hello"), (1, "edited by a person")]
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "edited by a person!"


def test_unchanged_data_is_not_written_again(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        return None

    deployed(conn, one_stage(work))
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'a', '{\"extra\": 1}')"
    )
    drain(one_stage(work), dsn)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {"extra": 1}


@pytest.mark.parametrize("end", ["returns", "fails", "rejects"])
def test_a_handler_that_ends_late_does_nothing_to_the_next_job_of_its_workflow_in_the_same_worker(
    conn: Conn, dsn: str, end: str
) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    started = asyncio.Event()
    runs = []

    @pipeline.stage("first", on="NEW", to="DONE")
    async def first(run: Run[Post]) -> None:
        with psycopg.connect(dsn) as other:
            other.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED'")
        await started.wait()
        if end != "returns":
            raise {"fails": RuntimeError, "rejects": Reject}[end]("too late")

    @pipeline.stage("second", on="MOVED", to="DONE")
    async def second(run: Run[Post]) -> None:
        runs.append(run.attempt)
        started.set()
        while not (worker.counts.lost or worker.counts.retried or worker.counts.dead or len(runs) > 1):
            await asyncio.sleep(0.01)

    pipeline.allow("NEW", to="MOVED")
    deployed(conn, pipeline).submit(conn, "a", Post())
    worker = Worker(pipeline, dsn, drain=True)
    asyncio.run(asyncio.wait_for(worker.run(), DEADLINE))
    assert status_of(conn, "a") == "DONE"
    assert runs == [1]
    assert (worker.counts.done, worker.counts.lost) == (1, 1)
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0


def test_a_stale_attempt_publishes_nothing_when_it_ends_together_with_the_next_job_of_its_workflow(
    conn: Conn, dsn: str
) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    together = asyncio.Event()

    @pipeline.stage("first", on="NEW", to="DONE")
    async def first(run: Run[Post]) -> None:
        run.publish("stale", {})
        with psycopg.connect(dsn) as other:
            other.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED'")
        await together.wait()

    @pipeline.stage("second", on="MOVED", to="DONE")
    async def second(run: Run[Post]) -> None:
        run.publish("current", {})
        together.set()

    pipeline.allow("NEW", to="MOVED")
    deployed(conn, pipeline).submit(conn, "a", Post())
    worker = Worker(pipeline, dsn, drain=True)
    asyncio.run(asyncio.wait_for(worker.run(), DEADLINE))
    assert status_of(conn, "a") == "DONE"
    assert conn.execute("SELECT topic FROM outbox.messages").fetchall() == [("current",)]
    assert (worker.counts.done, worker.counts.lost) == (1, 1)
