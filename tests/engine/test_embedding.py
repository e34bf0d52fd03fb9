"""A worker in an application: `async with Worker(…)`, `with Worker(…)` in a thread, and `health`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, no_session_is_left, one_stage, status_of, value
from kit.pooler import way
from kit.servers import DEADLINE, wait_for
from outbox import NotDeployed, OutboxError, Pipeline, Run, SchemaError, Worker, WorkerBroken
from outbox.engine import handlers
from outbox.process.embedding import Embedded

Conn = psycopg.Connection[Any]


async def nothing(run: Run[Post]) -> None: ...


def make(dsn: str, pipeline: Pipeline[Any], **options: Any) -> Worker:
    return Worker(pipeline, **way(dsn), **options)


def run(main: Callable[[], Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), DEADLINE))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def pipeline(conn: Conn) -> Pipeline[Any]:
    return deployed(conn, one_stage(nothing))


@pytest.mark.parametrize("notify", [True, False])
def test_the_block_begins_when_it_listens_and_its_end_stops_it(conn: Conn, dsn: str, pipeline: Pipeline[Any], notify: bool) -> None:  # fmt: skip
    async def main() -> None:
        async with make(dsn, pipeline, notify=notify) as worker:
            assert isinstance(worker, Worker)
            assert worker.health().ok, worker.health()
            assert value(conn, "SELECT count(*) FROM outbox.workers") == 1
            pipeline.submit(conn, "a", Post())
            await until(lambda: status_of(conn, "a") == "DONE")

    run(main)
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0
    assert no_session_is_left(conn)


@pytest.mark.parametrize("in_thread", [False, True], ids=["async with", "with"])
def test_what_keeps_it_from_starting_is_raised_at_the_beginning(
    conn: Conn, dsn: str, empty_dsn: str, in_thread: bool
) -> None:
    def start(worker: Worker) -> None:
        async def main() -> None:
            async with worker:
                raise AssertionError("the block has begun")

        if not in_thread:
            run(main)
        with worker:
            raise AssertionError("the block has begun")

    for error, where, match in [
        (SchemaError, empty_dsn, "outbox migrate"),
        (NotDeployed, dsn, "outbox deploy"),
        (psycopg.OperationalError, "postgresql://localhost:1/nowhere?host=nowhere.invalid", "nowhere"),
    ]:
        worker = Worker(one_stage(nothing), where)
        with pytest.raises(error, match=match):
            start(worker)
        assert "is not running" in str(worker.health().reason)


def test_running_handlers_end_within_the_grace_time(conn: Conn, dsn: str) -> None:
    begun = asyncio.Event()

    async def slow(run: Run[Post]) -> None:
        begun.set()
        await asyncio.sleep(0.2)

    pipeline = deployed(conn, one_stage(slow))
    pipeline.submit(conn, "a", Post())

    async def main() -> None:
        async with make(dsn, pipeline) as worker:
            await begun.wait()
            assert worker.health().in_flight == 1
        assert worker.counts.done == 1

    run(main)
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("in_thread", [False, True], ids=["async with", "with"])
def test_what_ends_it_is_logged_at_once_and_raised_at_the_end_of_the_block(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, in_thread: bool
) -> None:
    monkeypatch.setattr(handlers, "LOST_AFTER", 0.05)
    release = threading.Event()

    def hangs(run: Run[Post]) -> None:
        release.wait(DEADLINE)

    pipeline = deployed(conn, one_stage(hangs, timeout=0.05))
    pipeline.submit(conn, "a", Post())
    worker = make(dsn, pipeline, concurrency=1, grace=0.1)

    def broken() -> bool:
        return not worker.health().running

    def go_on() -> None:  # the block is not cancelled
        assert "has no slot left" in str(worker.health().reason)
        assert "this process goes on without it" in caplog.text
        release.set()

    async def main() -> None:
        async with worker:
            await until(broken)
            await asyncio.sleep(0)
            go_on()

    def start() -> None:
        if not in_thread:
            return run(main)
        with worker:
            wait_for(broken)
            go_on()

    with pytest.raises(WorkerBroken, match="has no slot left"):
        start()
    assert release.is_set()


def test_the_error_of_the_block_is_raised_as_it_is(conn: Conn, dsn: str, pipeline: Pipeline[Any]) -> None:
    async def main() -> None:
        async with make(dsn, pipeline):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(main)
    with pytest.raises(KeyError, match="mine"), make(dsn, pipeline):
        raise KeyError("mine")
    assert no_session_is_left(conn)


@pytest.mark.parametrize("database", ["there", "away"])
def test_cancelled_while_it_begins_it_leaves_nothing(conn: Conn, dsn: str, pipeline: Pipeline[Any], database: str) -> None:  # fmt: skip
    where = dsn if database == "there" else "postgresql://127.0.0.1:1/away"
    worker = Worker(pipeline, where)

    async def main() -> None:
        starting = asyncio.create_task(worker.__aenter__())
        await asyncio.sleep(0.02)
        starting.cancel()
        if not (await asyncio.gather(starting, return_exceptions=True))[0]:  # it was faster
            await worker.__aexit__(None, None, None)
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())
    assert no_session_is_left(conn)


def test_a_block_that_is_cancelled_gives_handlers_their_grace_and_a_second_time_cancels_them(
    conn: Conn, dsn: str
) -> None:
    seen: list[str] = []

    async def slow(run: Run[Post]) -> None:
        seen.append("begins")
        try:
            await asyncio.sleep(0.2 if run.entity_id == "a" else DEADLINE)
            seen.append("ends")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    pipeline = deployed(conn, one_stage(slow))

    async def main() -> None:
        for entity, times in ("a", 1), ("b", 2):
            block = asyncio.create_task(hold())
            pipeline.submit(conn, entity, Post())
            await until(lambda: seen[-1:] == ["begins"])
            for _ in range(times):
                block.cancel()
                await asyncio.sleep(0.05)
            with pytest.raises(asyncio.CancelledError):
                await block

    async def hold() -> None:
        async with make(dsn, pipeline):
            await asyncio.sleep(DEADLINE)

    run(main)
    assert seen == ["begins", "ends", "begins", "cancelled"]
    assert (status_of(conn, "a"), status_of(conn, "b")) == ("DONE", "NEW")
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NULL") == 1


def test_one_worker_may_be_used_again_in_another_loop(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(nothing))
    worker = make(dsn, pipeline)

    async def main() -> None:
        async with worker:
            pipeline.submit(conn, entity, Post())
            await until(lambda: status_of(conn, entity) == "DONE")

    for entity in "abc":  # noqa: B007 - main has it
        run(main)
    with worker:
        pipeline.submit(conn, "d", Post())
        wait_for(lambda: status_of(conn, "d") == "DONE")
    assert worker.counts.done == 4


def test_twice_at_once_is_refused(dsn: str, pipeline: Pipeline[Any]) -> None:
    async def main() -> None:
        async with (worker := make(dsn, pipeline)):
            with pytest.raises(OutboxError, match="this worker is running already; make another one"):
                async with worker:
                    pass
            with pytest.raises(OutboxError, match="running already"):
                await worker.run()
            with pytest.raises(OutboxError, match="running already"), worker:
                pass
            assert worker.health().ok

    run(main)
    with (worker := make(dsn, pipeline)):
        with pytest.raises(OutboxError, match="running already"), worker:
            pass
        assert worker.health().ok


def test_stop_in_the_block_ends_the_worker_and_not_the_block(dsn: str, pipeline: Pipeline[Any]) -> None:
    async def main() -> None:
        async with make(dsn, pipeline) as worker:
            worker.stop()
            assert worker.health().reason == "the worker is stopping"
            await until(lambda: not worker.health().running)
            assert worker.health().reason == "the worker is not running"
        async with worker:
            assert worker.health().ok

    run(main)


def test_a_drain_has_a_block_too(conn: Conn, dsn: str, pipeline: Pipeline[Any]) -> None:
    pipeline.submit(conn, "a", Post())

    async def main() -> None:
        async with make(dsn, pipeline, drain=True) as worker:
            await until(lambda: not worker.health().running)

    run(main)
    assert status_of(conn, "a") == "DONE"


def test_a_handler_that_cancels_all_tasks_does_not_cancel_the_block(conn: Conn, dsn: str) -> None:
    async def vandal(run: Run[Post]) -> None:
        for task in asyncio.all_tasks():
            if task.get_name().startswith("outbox"):
                task.cancel()

    pipeline = deployed(conn, one_stage(vandal))
    pipeline.submit(conn, "a", Post())

    async def main() -> None:
        async with make(dsn, pipeline) as worker:
            await until(lambda: not worker.health().running)

    with pytest.raises(WorkerBroken, match="tasks were cancelled"):
        run(main)


# Health.


def test_health_is_told_without_a_query_and_from_any_thread(conn: Conn, dsn: str) -> None:
    begun, release = threading.Event(), threading.Event()

    def work(run: Run[Post]) -> None:
        begun.set()
        release.wait(DEADLINE)

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(5)))
    with make(dsn, pipeline, concurrency=2) as worker:  # in a thread
        begun.wait(DEADLINE)
        wait_for(lambda: worker.health().in_flight == 2)
        health = worker.health()
        release.set()
        assert health.running
        assert health.listening
        assert not health.stopping
        assert health.reason is None
        assert health.heartbeat is not None
        assert health.heartbeat < 30
        assert set(json.loads(json.dumps(dataclasses.asdict(health)))) == {
            "running", "listening", "stopping", "heartbeat", "in_flight", "waiting", "uncommitted", "reason",
        }  # fmt: skip
        with pytest.raises(AttributeError):
            health.running = False  # type: ignore[misc]
    assert worker.health().running is False
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") >= 2


def test_health_tells_that_the_event_loop_stands_still(conn: Conn, dsn: str) -> None:
    found: list[str] = []

    async def blocks(run: Run[Post]) -> None:
        wait_for(lambda: bool(found), what="a probe in another thread has seen it")

    pipeline = deployed(conn, one_stage(blocks))

    with make(dsn, pipeline) as worker:
        pipeline.submit(conn, "a", Post())
        wait_for(lambda: "the event loop has stood still" in str(worker.health().reason))
        found.append("seen")
        wait_for(lambda: worker.health().ok)


def test_health_tells_that_the_database_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    worker = Worker(one_stage(nothing), "postgresql://127.0.0.1:1/away")

    async def main() -> None:
        assert worker.health().reason == "the worker is not running"
        starting = asyncio.create_task(worker.__aenter__())
        await until(lambda: worker.health().running)
        health = worker.health()
        assert (health.listening, health.heartbeat) == (False, None)
        assert health.reason == "the worker does not take work yet: it waits for what it needs"
        worker.stop()  # which ends the wait
        await starting
        await worker.__aexit__(None, None, None)

    run(main)


def test_a_lost_lease_is_told_until_there_is_another_one(conn: Conn, dsn: str, pipeline: Pipeline[Any]) -> None:
    async def main() -> None:
        async with make(dsn, pipeline, lease=1) as worker:
            with conn.transaction():
                conn.execute("LOCK TABLE outbox.workers IN ACCESS EXCLUSIVE MODE")
                await until(lambda: not worker.health().listening)
                assert "does not take work" in str(worker.health().reason)
            await until(lambda: worker.health().ok)

    run(main)


def test_everything_that_runs_has_it() -> None:
    from outbox import Consumer
    from outbox.messages.relay import Relay

    assert all(issubclass(each, Embedded) for each in (Worker, Consumer, Relay))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not [each for each in threading.enumerate() if each.name == "outbox worker"])
