"""What handlers need is made once in each process (`lifespan`), and an application hears of failures (`on_error`)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import LATER, QUICK, Post, deployed, drain, no_session_is_left, status_of, value
from kit.servers import DEADLINE, Process, wait_for
from outbox import DefinitionError, FailedAttempt, HandlerError, Pipeline, Reject, Run, SchemaError, Tick, Worker
from outbox.definition import failed_attempts, lifespan
from outbox.definition.failed_attempts import Reports

Conn = psycopg.Connection[Any]

told: list[Any] = []
client: ContextVar[str] = ContextVar("client", default="none")


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    told.clear()


def pipeline_with(handler: Callable[..., Any], name: str = "p", retry: Any = QUICK, **hooks: Any) -> Pipeline[Post]:
    pipeline = Pipeline(name, data=Post, initial="NEW", final={"DONE"}, **hooks)
    pipeline.stage("work", on="NEW", to="DONE", retry=retry)(handler)
    return pipeline


def run_one(conn: Conn, dsn: str, pipeline: Pipeline[Any], **options: Any) -> Worker:
    deployed(conn, pipeline).submit(conn, "a", Post())
    return drain(pipeline, dsn, **options)


@asynccontextmanager
async def clients() -> AsyncIterator[dict[str, int]]:
    told.append("opened")
    client.set("set")
    yield {"n": 1}
    told.append("closed")


@contextmanager
def plain_clients() -> Iterator[dict[str, int]]:
    told.append("opened")
    client.set("set")
    yield {"n": 1}
    told.append("closed")


async def look(run: Run[Post, dict[str, int]]) -> None:
    told.append((run.resources["n"], client.get()))


def look_plainly(run: Run[Post, dict[str, int]]) -> None:
    told.append((run.resources["n"], client.get()))


@pytest.mark.parametrize("handler", [look, look_plainly])
@pytest.mark.parametrize("made_by", [clients, plain_clients])
def test_it_is_open_from_before_the_first_handler_until_after_the_last(
    conn: Conn, dsn: str, handler: Any, made_by: Any
) -> None:
    run_one(conn, dsn, pipeline_with(handler, lifespan=made_by))
    assert told == ["opened", (1, "set"), "closed"]


def test_pipelines_that_have_the_same_one_share_what_it_makes(conn: Conn, dsn: str) -> None:
    one, two = (pipeline_with(look, name, lifespan=clients) for name in ("one", "two"))
    other = pipeline_with(look, "other", lifespan=plain_clients)
    for each in (one, two, other):
        deployed(conn, each).submit(conn, "a", Post())
    drain([one, two], dsn)
    assert told == ["opened", (1, "set"), (1, "set"), "closed"]
    drain([one, other], dsn, stages=["other.work"])  # what no handler here needs is not opened
    assert told[4:] == ["opened", (1, "set"), "closed"]


def test_ticks_and_what_is_around_attempts_have_it_too(conn: Conn, dsn: str) -> None:
    @contextmanager
    def around(given: Run[Post] | Tick) -> Iterator[None]:
        told.append(type(given).__name__ + str(given.resources["n"]))
        yield

    pipeline = pipeline_with(look, lifespan=clients, around=around)

    @pipeline.every("* * * * *")
    def tick(tick: Tick) -> None:
        told.append(("tick", tick.resources["n"], client.get()))

    deployed(conn, pipeline)
    conn.execute("UPDATE outbox.schedules SET next_at = now()")
    run_one(conn, dsn, pipeline)
    assert told[0] == "opened"
    assert sorted(map(str, told[1:-1])) == ["('tick', 1, 'set')", "(1, 'set')", "Run1", "SyncTick1"]
    assert told[-1] == "closed"


def test_that_of_a_worker_is_instead_of_that_of_its_pipelines(conn: Conn, dsn: str) -> None:
    run_one(conn, dsn, pipeline_with(look, lifespan=clients), lifespan=lambda: nullcontext({"n": 7}))
    assert told == [(7, "none")]


def test_without_one_there_are_no_resources(conn: Conn, dsn: str) -> None:
    run_one(conn, dsn, pipeline_with(look, retry=LATER))
    assert "give the pipeline, the worker or the consumer a lifespan=" in value(conn, "SELECT error FROM outbox.jobs")
    with pytest.raises(HandlerError, match="lifespan="):
        _ = Tick("p.t", None, None).resources  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["opening", "closing"])
def test_what_one_raises_is_raised_and_the_worker_does_not_register(conn: Conn, dsn: str, how: str) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        if how == "opening":
            raise KeyError("no token")
        yield
        raise KeyError("no token")

    @asynccontextmanager
    async def first() -> AsyncIterator[dict[str, int]]:
        try:
            yield {"n": 1}
        finally:
            told.append("first closed")

    both = [pipeline_with(look, "one", lifespan=first), pipeline_with(look, "two", lifespan=broken)]
    for each in both:
        deployed(conn, each)
    before = value(conn, "SELECT coalesce(max(id), 0) FROM outbox.workers")

    async def main() -> None:
        async with Worker(both, dsn):
            told.append("begun")

    with pytest.raises(KeyError, match="no token"):
        asyncio.run(main())
    assert told == (["first closed"] if how == "opening" else ["begun", "first closed"])
    assert value(conn, "SELECT coalesce(max(id), 0) FROM outbox.workers") == before == 0
    assert no_session_is_left(conn)


def test_the_schema_is_checked_before_anything_is_opened(empty_dsn: str) -> None:
    with pytest.raises(SchemaError):
        asyncio.run(Worker(pipeline_with(look, lifespan=clients), empty_dsn).run())
    assert told == []


def test_a_function_that_makes_no_context_manager_is_named(conn: Conn, dsn: str) -> None:
    async def forgotten() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(DefinitionError, match="forgotten must return a context manager; decorate it with @async"):
        run_one(conn, dsn, pipeline_with(look, lifespan=forgotten))
    with pytest.raises(DefinitionError, match="lifespan=5 is not a function"):
        pipeline_with(look, lifespan=5)
    with pytest.raises(DefinitionError, match="on_error=5 is not a function"):
        Worker(pipeline_with(look), dsn, on_error=5)  # type: ignore[arg-type]


def test_it_is_opened_and_closed_in_one_task_and_a_stop_ends_its_opening(conn: Conn, dsn: str) -> None:
    hang = False

    @asynccontextmanager
    async def scoped() -> AsyncIterator[dict[str, int]]:
        async with asyncio.timeout(DEADLINE):  # which refuses to be left in another task
            async with asyncio.TaskGroup():
                if hang:
                    told.append("opening")
                    await asyncio.sleep(DEADLINE)
                yield {"n": 1}
        told.append("closed")

    pipeline = pipeline_with(look, lifespan=scoped)
    run_one(conn, dsn, pipeline)
    assert told == [(1, "none"), "closed"]
    hang = True

    async def main() -> None:
        worker = Worker(pipeline, dsn)
        running = asyncio.create_task(worker.run())
        while told[-1] != "opening":
            await asyncio.sleep(0.01)
        worker.stop()
        await running

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert told[2:] == ["opening"]


def test_it_is_closed_after_handlers_that_are_cancelled(conn: Conn, dsn: str) -> None:
    async def slow(run: Run[Post]) -> None:
        told.append("begins")
        try:
            await asyncio.sleep(DEADLINE)
        finally:
            told.append("cancelled")

    pipeline = deployed(conn, pipeline_with(slow, lifespan=clients))
    pipeline.submit(conn, "a", Post())

    async def main() -> None:
        running = asyncio.create_task(Worker(pipeline, dsn).run())
        while "begins" not in told:
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait((running,))

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert told == ["opened", "begins", "cancelled", "closed"]


def test_one_that_does_not_close_is_left(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespan, "CLOSE_WITHIN", 0.05)

    @asynccontextmanager
    async def stuck() -> AsyncIterator[dict[str, int]]:
        yield {"n": 1}
        await asyncio.sleep(DEADLINE)

    run_one(conn, dsn, pipeline_with(look, lifespan=stuck))
    assert "a lifespan was not closed within" in caplog.text


APP = """
import os, sys
from contextlib import asynccontextmanager
from outbox import Pipeline

@asynccontextmanager
async def lifespan():
    if os.environ.get("BROKEN"):
        raise RuntimeError("no token for the CRM")
    print("opened by", os.getpid(), file=sys.stderr)
    yield os.getpid()
    print("closed by", os.getpid(), file=sys.stderr)

posts = Pipeline("posts", initial="NEW", final={"DONE"}, lifespan=lifespan)

@posts.stage("work", on="NEW", to="DONE")
async def work(run):
    assert run.resources == os.getpid()
"""


def test_each_process_of_outbox_worker_opens_it_once(
    conn: Conn, spawn: Callable[..., Process], outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_lifespan.py").write_text(APP)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    monkeypatch.syspath_prepend(tmp_path)
    outbox("deploy", "--app", "with_lifespan:posts")
    refused = spawn("worker", "--app", "with_lifespan:posts", "--processes", "2", env={**env, "BROKEN": "1"})
    assert refused.wait() == 1
    assert "no token for the CRM" in refused.text()
    worker = spawn("worker", "--app", "with_lifespan:posts", "--processes", "2", env=env)
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workers") == 2, what="both serve")
    outbox("submit", "--pipeline", "posts", input='{"entity_id": "a", "metadata": {}}\n')
    wait_for(lambda: status_of(conn, "a") == "DONE")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    opened = [line.split()[-1] for line in worker.text().splitlines() if line.startswith("opened by")]
    closed = [line.split()[-1] for line in worker.text().splitlines() if line.startswith("closed by")]
    assert len(set(opened)) == len(opened) == 2
    assert sorted(opened) == sorted(closed)


# on_error


def record(error: BaseException, failed: FailedAttempt) -> None:
    told.append((type(error).__name__, failed, threading.current_thread().name))


async def record_async(error: BaseException, failed: FailedAttempt) -> None:
    told.append((type(error).__name__, failed, threading.current_thread().name))


@pytest.mark.parametrize("on_error", [record, record_async])
def test_each_failed_attempt_is_told_with_what_has_failed(conn: Conn, dsn: str, on_error: Any) -> None:
    async def fails(run: Run[Post]) -> None:
        if run.attempt == 2:
            raise Reject("never")
        raise KeyError("x")

    pipeline = pipeline_with(fails, on_error=on_error)
    run_one(conn, dsn, pipeline)
    while value(conn, "SELECT count(*) FROM outbox.jobs WHERE stage IS NOT NULL"):
        drain(pipeline, dsn)
    (first, failed, thread), (second, last, _) = told
    assert (first, second) == ("KeyError", "Reject")
    assert (failed.pipeline, failed.stage, failed.entity_id, failed.attempt, failed.final) == (
        "p",
        "work",
        "a",
        1,
        False,
    )
    assert 0 < failed.retry_in < 1
    assert last == FailedAttempt("p", "work", "a", 2, None)
    assert last.final
    assert thread == ("MainThread" if on_error is record_async else "outbox on_error")


def test_both_of_the_worker_and_of_the_pipeline_are_told_with_the_handlers_traceback(conn: Conn, dsn: str) -> None:
    def fails(run: Run[Post]) -> None:
        raise KeyError("x")

    def own(error: BaseException, failed: FailedAttempt) -> None:
        assert error.__traceback__ is not None
        told.append(error.__traceback__.tb_frame.f_code.co_name)

    run_one(conn, dsn, pipeline_with(fails, on_error=own, retry=LATER), on_error=own)
    assert told == ["fails", "fails"]


def test_data_that_does_not_fit_and_ticks_are_told_too(conn: Conn, dsn: str) -> None:
    pipeline = pipeline_with(look, on_error=record)

    @pipeline.every("* * * * *", name="often")
    async def tick(tick: Tick) -> None:
        raise OSError("no disk")

    deployed(conn, pipeline)
    conn.execute("UPDATE outbox.schedules SET next_at = now()")
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'odd', '[]')")

    async def main() -> None:
        async with Worker(pipeline, dsn):
            while len({name for name, *_ in told}) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    found = {name: failed for name, failed, _ in told}
    assert found["HandlerError"] == FailedAttempt("p", "work", "odd", 1, None)
    assert (found["OSError"].stage, found["OSError"].attempt, found["OSError"].final) == ("often", None, False)


@pytest.mark.parametrize("raises", [ValueError, SystemExit, asyncio.CancelledError])
def test_its_own_errors_are_logged_and_harm_nothing(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture, raises: Any
) -> None:
    def odd(error: BaseException, failed: FailedAttempt) -> None:
        raise raises("no Sentry")

    async def fails(run: Run[Post]) -> None:
        raise KeyError("x")

    run_one(conn, dsn, pipeline_with(fails, on_error=odd, retry=LATER))
    assert "on_error has failed itself" in caplog.text
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NULL") == 1


def test_a_slow_one_holds_up_no_handler_and_not_the_end(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(failed_attempts, "LAST_WITHIN", 0.05)
    monkeypatch.setattr(failed_attempts, "MOST", 3)
    hold = threading.Event()

    def hangs(error: BaseException, failed: FailedAttempt) -> None:
        told.append(failed.entity_id)
        hold.wait(DEADLINE)

    async def fails(run: Run[Post]) -> None:
        raise KeyError("x")

    pipeline = deployed(conn, pipeline_with(fails, on_error=hangs, retry=LATER))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(20)))
    try:
        worker = drain(pipeline, dsn)
        assert worker.counts.retried == 20
        assert len(told) == 1
        assert "on_error was not told of" in caplog.text
    finally:
        hold.set()


def test_failures_that_are_dropped_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(failed_attempts, "MOST", 2)

    async def main() -> None:
        reports = Reports()
        for number in range(5):
            reports.tell([record_async], KeyError(), FailedAttempt("p", "s", str(number), 1, None))
        await reports.close()

    asyncio.run(main())
    assert [failed.entity_id for _, failed, _ in told] == ["0", "1"]
    assert "3 failed attempts were not told" in caplog.text


def test_a_lifespan_is_typed() -> None:
    def given() -> AbstractContextManager[int]:
        return nullcontext(1)

    async def handler(run: Run[Post, int]) -> None:
        told.append(run.resources + 1)

    assert pipeline_with(handler, lifespan=given).stages["work"].is_async
