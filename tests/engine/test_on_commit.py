"""What a step wants called after its COMMIT is called then, once, and never for what was rolled back."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import psycopg
import pytest

from kit.pipelines import LATER, Post, deployed, drain, one_stage, run_one, status_of, value
from outbox import HandlerError, InvalidInput, Pipeline, Run, Tick
from outbox.database.steps import perform, perform_async
from outbox.engine import sharing, transaction

Conn = psycopg.Connection[Any]
Colour = Callable[[Callable[[Any], Generator[Any, Any, Any]]], Callable[[Any], Any]]
INSERT = "INSERT INTO outbox.witness VALUES (%s)"


@pytest.fixture(autouse=True)
def effects(conn: Conn) -> None:
    conn.execute("CREATE TABLE outbox.witness (entity text)")


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> Colour:
    """Makes a handler of a function that yields what is to be awaited in an async one."""

    async def awaited(step: Any) -> Any:
        return await step if isinstance(step, Awaitable) else step

    def sync(function: Any) -> Any:
        return lambda run: perform(function(run), lambda step: step)

    def in_loop(function: Any) -> Any:
        async def handler(run: Any) -> Any:
            return await perform_async(function(run), awaited)

        return handler

    return in_loop if request.param == "async" else sync


def effects_of(conn: Conn) -> list[str]:
    return [entity for (entity,) in conn.execute("SELECT entity FROM outbox.witness ORDER BY 1")]


def test_functions_are_called_after_the_commit_in_their_order(conn: Conn, dsn: str, colour: Colour) -> None:
    called: list[Any] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute(INSERT, ("a",))
        run.on_commit(lambda: called.append((status_of(conn, "a"), effects_of(conn))))
        run.on_commit(lambda: called.append("second"))
        assert called == []

    run_one(conn, dsn, colour(work), transaction=True)
    assert called == [("DONE", ["a"]), "second"]


def test_an_async_function_is_awaited(conn: Conn, dsn: str) -> None:
    called: list[str] = []

    async def tell() -> None:
        await asyncio.sleep(0)
        called.append(status_of(conn, "a"))

    async def work(run: Run[Post]) -> None:
        run.on_commit(tell)

    run_one(conn, dsn, work, transaction=True)
    assert called == ["DONE"]


def test_a_plain_handler_has_it_called_in_a_thread_and_can_not_have_async_ones(conn: Conn, dsn: str) -> None:
    threads: list[str] = []

    async def tell() -> None:
        raise AssertionError("never")

    def work(run: Run[Post]) -> None:
        with pytest.raises(InvalidInput, match=r"stage p\.work is a plain function"):
            run.on_commit(tell)
        with pytest.raises(InvalidInput, match="without arguments, not str"):
            run.on_commit("tell")  # type: ignore[arg-type]
        run.on_commit(lambda: threads.append(threading.current_thread().name))

    run_one(conn, dsn, work, transaction=True)
    assert threads == ["outbox p.work"]


def test_what_failed_or_was_taken_away_has_nothing_called(conn: Conn, dsn: str, colour: Colour) -> None:
    called: list[str] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute(INSERT, (run.entity_id,))
        run.on_commit(lambda: called.append(run.entity_id))
        if run.entity_id == "raises":
            raise ValueError("no")
        if run.entity_id == "moved":
            conn.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = 'moved'")
        if run.entity_id == "refused":
            yield run.connection.execute("SET CONSTRAINTS ALL DEFERRED")
            yield run.connection.execute("INSERT INTO outbox.strict VALUES (1), (1)")

    conn.execute("CREATE TABLE outbox.strict (n int, UNIQUE (n) DEFERRABLE INITIALLY DEFERRED)")
    pipeline = deployed(conn, one_stage(colour(work), transaction=True, retry=LATER))
    pipeline.submit_many(conn, ((entity, Post()) for entity in ("raises", "moved", "refused", "well")))
    drain(pipeline, dsn)
    assert called == effects_of(conn) == ["well"]


def test_an_error_in_one_is_logged_and_the_others_are_called(
    conn: Conn, dsn: str, colour: Colour, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[int] = []

    def fails(error: BaseException) -> Callable[[], None]:
        def tell() -> None:
            raise error

        return tell

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield None
        for error in (ValueError("not reached"), SystemExit(3), asyncio.CancelledError(), StopIteration()):
            run.on_commit(fails(error))
        run.on_commit(lambda: called.append(1))

    worker = run_one(conn, dsn, colour(work), transaction=True)
    assert (status_of(conn, "a"), worker.counts.done, called) == ("DONE", 1, [1])
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 4
    assert "p.work a: committed, but" in told[0]
    assert "ValueError: not reached" in told[0]


def test_one_that_does_not_end_is_cancelled_at_the_timeout(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(run: Run[Post]) -> None:
        run.on_commit(lambda: asyncio.sleep(3600))

    worker = run_one(conn, dsn, work, transaction=True, timeout=0.1)
    assert (status_of(conn, "a"), worker.counts.done, worker.counts.dead) == ("DONE", 1, 0)
    assert "what was to be called after its commit did not end" in caplog.text


def test_where_commits_are_shared_they_wait_for_the_common_one(
    conn: Conn, dsn: str, colour: Colour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    monkeypatch.setattr(sharing, "FIRST", 50)
    called: list[Any] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        assert called == [], "not while others have their turns"
        run.on_commit(lambda: called.append((run.entity_id, len(effects_of(conn)))))
        yield run.connection.execute(INSERT, (run.entity_id,))
        if run.entity_id == "2":
            raise ValueError("not this one")

    pipeline = deployed(conn, one_stage(colour(work), transaction=True, share=50, retry=LATER))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(4)))
    drain(pipeline, dsn, concurrency=1)
    assert called == [("0", 3), ("1", 3), ("3", 3)]


def test_each_run_of_a_batch_may_have_its_own(conn: Conn, dsn: str, colour: Colour) -> None:
    called: list[str] = []

    def work(runs: list[Run[Post]]) -> Generator[Any, Any, Any]:
        for run in runs:
            run.on_commit(lambda run=run: called.append(run.entity_id))  # type: ignore[misc]
        yield runs[0].connection.execute(INSERT, ("all",))

    pipeline = deployed(conn, one_stage(colour(work), transaction=True, batch=10))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(3)))
    drain(pipeline, dsn)
    assert sorted(called) == ["0", "1", "2"]


def test_without_a_transaction_the_option_is_named(conn: Conn, dsn: str) -> None:
    told: list[str] = []

    async def work(run: Run[Post]) -> None:
        with pytest.raises(HandlerError) as error:
            run.on_commit(lambda: None)
        told.append(str(error.value))

    run_one(conn, dsn, work)
    assert told == ["stage p.work has no connection: define it with transaction=True"]


def test_the_connection_is_gone_when_the_handler_has_ended(conn: Conn, dsn: str, colour: Colour) -> None:
    runs: list[Run[Post]] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        runs.append(run)
        yield run.connection.execute(INSERT, ("a",))
        if run.attempt == 1:
            raise ValueError("again")

    run_one(conn, dsn, colour(work), transaction=True)
    assert len(runs) == 2
    for run in runs:
        with pytest.raises(HandlerError, match=r"stage p\.work has ended"):
            _ = run.connection
        with pytest.raises(HandlerError, match="has ended"):
            run.on_commit(lambda: None)


def test_ticks_have_it_too(conn: Conn, dsn: str, colour: Colour) -> None:
    called: list[Any] = []
    ticks: list[Tick] = []

    def look(tick: Tick) -> Generator[Any, Any, Any]:
        ticks.append(tick)
        tick.on_commit(lambda: called.append((len(ticks), effects_of(conn))))
        yield tick.connection.execute(INSERT, ("tick",))
        if len(ticks) == 1:
            raise ValueError("again")

    pipeline: Pipeline[Post] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
    pipeline.every("0 0 1 1 *", name="look")(colour(look))
    deployed(conn, pipeline)
    for _ in range(2):
        conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 minute', retry_at = NULL")
        drain(pipeline, dsn)
    assert called == [(2, ["tick"])]


def test_a_process_that_dies_before_calls_nothing_and_nothing_is_done_again(conn: Conn, dsn: str) -> None:
    read, write = os.pipe()

    async def work(run: Run[Post]) -> None:
        await run.connection.execute(INSERT, (run.entity_id,))
        run.on_commit(lambda: os._exit(7))
        run.on_commit(lambda: os.write(write, b"called"))

    pipeline = deployed(conn, one_stage(work, transaction=True))
    pipeline.submit(conn, "a", Post())
    if (child := os.fork()) == 0:
        drain(pipeline, dsn)
        os._exit(0)
    _, code = os.waitpid(child, 0)
    os.close(write)
    assert (os.waitstatus_to_exitcode(code), os.read(read, 10)) == (7, b"")
    os.close(read)
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), effects_of(conn)) == ("DONE", ["a"])
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
