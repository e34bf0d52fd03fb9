"""A task works off one job after the other, for as long as no handler leaves anything behind in it."""

from __future__ import annotations

import asyncio
import contextvars
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, drain_all, one_stage, value
from outbox import Pipeline, Run
from outbox.engine import attempt
from outbox.process.task_traces import current

Conn = psycopg.Connection[Any]
JOBS = 20

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
sessions: dict[asyncio.Task[Any], str] = {}
weakly: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    sessions.clear()
    weakly.clear()


def jobs(conn: Conn, handler: Callable[[Run[Post]], Awaitable[Any]], **options: Any) -> Pipeline[Any]:
    pipeline = deployed(conn, one_stage(handler, **options))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(JOBS)))
    return pipeline


def done(conn: Conn) -> int:
    return int(value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'"))


def test_handlers_that_do_not_leave_the_loop_share_a_task(conn: Conn, dsn: str) -> None:
    tasks: list[str] = []

    async def work(run: Run[Post]) -> None:
        tasks.append(current().get_name())

    drain(jobs(conn, work), dsn)
    assert (len(tasks), done(conn)) == (JOBS, JOBS)
    assert max(Counter(tasks).values()) > 1


async def sets_a_variable(run: Run[Post]) -> None:
    assert user.get() == "nobody"
    user.set(run.entity_id)


async def keeps_a_session_under_the_task(run: Run[Post]) -> None:
    """As SQLAlchemy's async_scoped_session does."""
    assert sessions.setdefault(current(), run.entity_id) == run.entity_id


async def keeps_a_session_weakly(run: Run[Post]) -> None:
    """As anyio does."""
    assert weakly.setdefault(current(), run.entity_id) == run.entity_id


async def cancels_itself(run: Run[Post]) -> None:
    assert current().cancelling() == 0
    current().cancel()


async def swallows_its_cancellation(run: Run[Post]) -> None:
    assert current().cancelling() == 0
    current().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        return
    raise AssertionError("it was not cancelled")


@pytest.mark.parametrize(
    "handler",
    [
        sets_a_variable, keeps_a_session_under_the_task, keeps_a_session_weakly, cancels_itself, swallows_its_cancellation,
    ],
)  # fmt: skip
def test_a_handler_finds_nothing_of_the_one_before(
    conn: Conn, dsn: str, handler: Callable[[Run[Post]], Awaitable[Any]]
) -> None:
    drain(jobs(conn, handler), dsn)
    assert done(conn) == JOBS


def test_what_a_handler_has_called_when_its_task_ends_is_called_once_for_each(conn: Conn, dsn: str) -> None:
    handled: list[str] = []
    called: list[str] = []

    async def work(run: Run[Post]) -> None:
        handled.append(run.entity_id)
        entity = run.entity_id
        current().add_done_callback(lambda _: called.append(entity))

    drain(jobs(conn, work), dsn, concurrency=1)
    assert called == handled
    assert len(called) == JOBS


def test_a_job_that_is_taken_away_as_its_handler_ends_does_not_cancel_the_next_one(conn: Conn, dsn: str) -> None:
    begun: list[str] = []
    ended: list[str] = []

    async def work(run: Run[Post]) -> None:
        begun.append(run.entity_id)
        if len(begun) == 1:
            run._job.take_away("another worker has it")  # type: ignore[attr-defined]
        else:
            await asyncio.sleep(0.001)  # the cancellation would come here
        ended.append(run.entity_id)

    drain_all(conn, dsn, jobs(conn, work))
    assert ended == begun
    assert done(conn) == JOBS


def test_handlers_that_compute_for_long_let_others_have_the_loop_between_them(conn: Conn, dsn: str) -> None:
    seen: list[int] = []
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async def work(run: Run[Post]) -> None:
        if not turns:
            turn()
        seen.append(turns)
        time.sleep(2 * attempt.TURN)  # noqa: ASYNC251 - it computes

    drain(jobs(conn, work), dsn)
    assert max(Counter(seen).values()) <= 3, "no more tasks have a job in each turn than are on their way"


def test_handlers_that_wait_run_beside_each_other(conn: Conn, dsn: str) -> None:
    at_work = most = 0

    async def work(run: Run[Post]) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        if at_work == JOBS:
            together.set()
        await together.wait()
        at_work -= 1

    together = asyncio.Event()
    drain(jobs(conn, work), dsn)
    assert most == JOBS
