"""What an application runs around its handlers: `around`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest

from kit.pipelines import LATER, QUICK, Post, deployed, drain, drain_all, status_of, value
from outbox import DefinitionError, Pipeline, Reject, Run, Tick, Worker
from outbox.engine import surroundings
from outbox.engine.lane import Lanes
from outbox.engine.surroundings import Surroundings

Conn = psycopg.Connection[Any]

told: list[str] = []
span: ContextVar[str] = ContextVar("span", default="none")


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    told.clear()


def telling(name: str) -> Callable[[Any], Any]:
    @contextmanager
    def around(run: Any) -> Iterator[None]:
        told.append(f"{name} enters")
        try:
            yield
        except BaseException as error:
            told.append(f"{name} sees {type(error).__name__}")
            raise
        told.append(f"{name} leaves")

    return around


def telling_async(name: str) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def around(run: Any) -> AsyncIterator[None]:
        with telling(name)(run):
            await asyncio.sleep(0)
            yield

    return around


async def work(run: Run[Post]) -> None:
    told.append("works")


def work_plainly(run: Run[Post]) -> None:
    told.append("works")


def one(handler: Callable[..., Any], around: Any, **options: Any) -> Pipeline[Post]:
    """Returns a pipeline NEW -> DONE whose only stage is `handler`."""
    pipeline = Pipeline("p", data=Post, initial="NEW", final={"DONE"}, around=around)
    pipeline.stage("work", on="NEW", to="DONE", **{"retry": QUICK, **options})(handler)
    return pipeline


def run_one(
    conn: Conn, dsn: str, pipeline: Pipeline[Any], entities: tuple[str, ...] = ("a",), **options: Any
) -> Worker:
    deployed(conn, pipeline).submit_many(conn, ((entity, Post()) for entity in entities))
    return drain(pipeline, dsn, **options)


SURROUNDED = ["outer enters", "inner enters", "works", "inner leaves", "outer leaves"]
BOTH = [telling("outer"), telling("inner")]
KINDS = [
    pytest.param(work, BOTH, {}, id="async"),
    pytest.param(work, [telling_async("outer"), telling("inner")], {}, id="async in an async one"),
    pytest.param(work, BOTH, {"transaction": True}, id="async in a transaction"),
    pytest.param(work_plainly, BOTH, {}, id="plain"),
    pytest.param(work_plainly, BOTH, {"transaction": True}, id="plain in a transaction"),
    pytest.param(work, BOTH, {"transaction": True, "share": 5}, id="async, shared"),
    pytest.param(work_plainly, BOTH, {"transaction": True, "share": 5}, id="plain, shared"),
]


@pytest.mark.parametrize(("handler", "around", "options"), KINDS)
def test_the_first_one_is_outermost(conn: Conn, dsn: str, handler: Any, around: Any, options: Any) -> None:
    run_one(conn, dsn, one(handler, around, **options))
    assert told == SURROUNDED
    assert status_of(conn, "a") == "DONE"


def test_that_of_the_worker_is_around_those_of_the_pipelines(conn: Conn, dsn: str) -> None:
    run_one(conn, dsn, one(work, telling("inner")), around=telling("outer"))
    assert told == SURROUNDED


def test_it_is_given_the_run_and_sees_what_it_writes(conn: Conn, dsn: str) -> None:
    @asynccontextmanager
    async def named(run: Run[Post]) -> AsyncIterator[None]:
        told.append(f"{run.pipeline}.{run.stage} {run.entity_id} #{run.attempt}")
        await run.connection.execute("SELECT set_config('application_name', 'inside', true)")
        yield
        cursor = await run.connection.execute("SELECT current_setting('application_name')")
        told.append((await cursor.fetchone())[0])
        run.publish("around", {})

    run_one(conn, dsn, one(work, named, transaction=True))
    assert told == ["p.work a #1", "works", "inside"]
    assert value(conn, "SELECT count(*) FROM outbox.messages WHERE topic = 'around'") == 1


@pytest.mark.parametrize("handler", [work, work_plainly])
@pytest.mark.parametrize("options", [{}, {"transaction": True}], ids=["", "transaction"])
def test_its_error_is_the_handlers(conn: Conn, dsn: str, handler: Any, options: Any) -> None:
    @contextmanager
    def broken(run: Run[Post]) -> Iterator[None]:
        if run.attempt == 1:
            raise ValueError("no tracer")
        yield
        if run.attempt == 2:
            raise Reject("not after all")

    pipeline = one(handler, broken, **{**options, "retry": LATER})
    run_one(conn, dsn, pipeline)
    (error,) = conn.execute("SELECT error FROM outbox.jobs").fetchone() or ("",)
    assert error.startswith("ValueError: no tracer (test_surroundings.py:")
    assert told == []
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(pipeline, dsn)
    assert value(conn, "SELECT error FROM outbox.dead_jobs") == "not after all"
    assert status_of(conn, "a") == "NEW"


@pytest.mark.parametrize("kind", [telling, telling_async])
def test_it_sees_the_handlers_error_whose_place_stays(conn: Conn, dsn: str, kind: Any) -> None:
    async def fails(run: Run[Post]) -> None:
        raise KeyError("x")

    run_one(conn, dsn, one(fails, kind("it"), retry=LATER))
    assert told == ["it enters", "it sees KeyError"]
    assert value(conn, "SELECT error ~ ' in fails' FROM outbox.jobs")


def test_an_error_that_is_swallowed_is_no_success(conn: Conn, dsn: str) -> None:
    async def fails(run: Run[Post]) -> None:
        raise KeyError("x")

    def fails_plainly(run: Run[Post]) -> None:
        raise KeyError("x")

    for handler in (fails, fails_plainly):
        run_one(conn, dsn, one(handler, lambda run: suppress(KeyError), retry=LATER), entities=(handler.__name__,))
    errors = [row[0] for row in conn.execute("SELECT error FROM outbox.jobs")]
    assert len(errors) == 2
    assert all("has swallowed the handler's error" in error for error in errors)


@pytest.mark.parametrize("handler", [work, work_plainly])
def test_what_returns_no_context_manager_is_named(conn: Conn, dsn: str, handler: Any) -> None:
    def odd(run: Run[Post]) -> Any:
        return 5

    run_one(conn, dsn, one(handler, odd, retry=LATER))
    assert "odd must return a context manager" in value(conn, "SELECT error FROM outbox.jobs")


def test_an_async_one_around_a_plain_handler_is_refused(dsn: str) -> None:
    with pytest.raises(DefinitionError, match=r"is an async context manager, and the handler of p\.work is a plain"):
        Worker(one(work_plainly, telling_async("it")), dsn)
    with pytest.raises(DefinitionError, match="is not a function"):
        one(work, 5)
    with pytest.raises(DefinitionError, match="around=None is not a function"):
        Worker(one(work, ()), dsn, around=[None])  # type: ignore[list-item]


@pytest.mark.parametrize("shared", [{}, {"transaction": True}, {"transaction": True, "share": 10}], ids=str)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
def test_context_variables_are_set_for_one_attempt(conn: Conn, dsn: str, is_async: bool, shared: Any) -> None:
    @contextmanager
    def spanning(run: Run[Post]) -> Iterator[None]:
        assert span.get() == "none"
        span.set(run.entity_id)
        yield

    async def look(run: Run[Post]) -> None:
        told.append(f"{run.entity_id} {span.get()}")

    def look_plainly(run: Run[Post]) -> None:
        told.append(f"{run.entity_id} {span.get()}")

    run_one(conn, dsn, one(look if is_async else look_plainly, spanning, **shared), tuple("abcdef"), concurrency=1)
    assert sorted(told) == [f"{entity} {entity}" for entity in "abcdef"]


def test_each_run_of_a_batch_has_its_own(conn: Conn, dsn: str) -> None:
    @contextmanager
    def named(run: Run[Post]) -> Iterator[None]:
        told.append(run.entity_id)
        yield
        told.append(run.entity_id)

    def together(runs: list[Run[Post]]) -> None:
        told.append(str(len(runs)))

    run_one(conn, dsn, one(together, named, transaction=True, batch=3), ("a", "b", "c"), concurrency=1)
    assert told == ["a", "b", "c", "3", "c", "b", "a"]


def test_it_leaves_a_handler_that_is_cancelled_by_its_timeout(conn: Conn, dsn: str) -> None:
    async def hangs(run: Run[Post]) -> None:
        if run.attempt == 1:
            await asyncio.sleep(60)

    drain_all(
        conn,
        dsn,
        (lambda p: (deployed(conn, p).submit(conn, "a", Post()), p)[1])(one(hangs, telling("it"), timeout=0.2)),
    )
    assert told == ["it enters", "it sees CancelledError", "it enters", "it leaves"]


def test_it_is_in_the_thread_of_a_plain_handler(conn: Conn, dsn: str) -> None:
    @contextmanager
    def here(run: Run[Post]) -> Iterator[None]:
        told.append(threading.current_thread().name)
        yield

    run_one(conn, dsn, one(work_plainly, here))
    assert told == ["outbox p.work", "works"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
def test_ticks_and_reactions_have_it_too(conn: Conn, dsn: str, is_async: bool) -> None:
    @contextmanager
    def named(given: Run[Any] | Tick) -> Iterator[None]:
        told.append(f"{given.schedule}" if isinstance(given, Tick) else f"{given.pipeline} {given.entity_id}")
        yield

    pipeline = one(work, named)

    async def tick(tick: Tick) -> None:
        await pipeline.submit(tick.connection, "ticked", Post())

    def tick_plainly(tick: Tick) -> None:
        pipeline.submit(tick.connection, "ticked", Post())

    pipeline.every("* * * * *", name="often")(tick if is_async else tick_plainly)

    @pipeline.on_change("DONE")
    async def mail(run: Run[Any]) -> None: ...

    deployed(conn, pipeline)
    conn.execute("UPDATE outbox.schedules SET next_at = now()")
    drain(pipeline, dsn)
    assert [line.partition(" ")[0] for line in told if line != "works"] == ["p.often", "p", "p/mail"]
    assert status_of(conn, "ticked") == "DONE"


def test_without_hooks_handlers_are_called_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "EVERYWHERE", [])  # what other tests' imports have put there
    pipeline = one(work, ())
    pipeline.every("* * * * *")(work)
    lanes = Lanes.of([pipeline], None, None, Surroundings().stage)
    assert lanes["p", "work"].stage is pipeline.stages["work"]
    assert Surroundings().schedule(pipeline.schedules["work"]) is pipeline.schedules["work"]
