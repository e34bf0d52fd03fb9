"""Runs schedules: each tick once, on whichever worker takes it first.

The schedule's row is locked while its function runs, and moves on in the function's own transaction: a tick that was
rolled back is due again, one that was committed is over, and two at once can't be.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import psycopg

from .. import texts
from ..database import statements, user_transaction
from ..database.link import Link, first_line, idle_ms
from ..database.session import READING, connect, connect_async, restore
from ..database.steps import Call, Statement
from ..database.user_transaction import Begin, Commit, Steps
from ..definition.reasons import describe, from_handler, log_with
from ..definition.schedule import Schedule, Tick
from ..errors import HandlerError

SQL = statements.load("scheduler")
log = logging.getLogger("outbox.schedule")

LOOK_EVERY = 10.0
"""Seconds between two looks at schedules that aren't due: a deploy may have changed them."""


class Scheduler:
    """A worker's loop over its schedules; each runs beside the others."""

    def __init__(self, dsn: str, schedules: Sequence[Schedule], *, pooled: bool = False) -> None:
        self._dsn, self._pooled = dsn, pooled
        self._schedules = {(schedule.pipeline, schedule.name): schedule for schedule in schedules}
        self._link = Link(dsn, "schedules", pooled=pooled)
        self._running: set[Schedule] = set()
        self._ran = asyncio.Event()

    async def run(self) -> None:
        """Runs what is due, until it is cancelled."""
        async with asyncio.TaskGroup() as ticks:
            while True:
                wait = LOOK_EVERY
                for schedule, due_in in await self._look():
                    if due_in <= 0 and schedule not in self._running:
                        ticks.create_task(self._run(schedule))
                    # What is overdue is looked at again soon: another worker may be running it.
                    wait = min(wait, due_in if due_in > 0 else random.uniform(0.5, 1))
                self._ran.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ran.wait(), wait)

    async def run_due(self) -> bool:
        """Runs all that is due and that no other worker runs, one after the other; returns whether there was any."""
        due = [schedule for schedule, due_in in await self._look() if due_in <= 0]
        return any([await self._run(schedule) for schedule in due])

    async def close(self) -> None:
        await self._link.close()

    async def _look(self) -> list[tuple[Schedule, float]]:
        """Returns the schedules, each with the seconds until it is due."""
        mine = {"pipelines": [name for name, _ in self._schedules], "schedules": [name for _, name in self._schedules]}
        rows = await self._link.repeat(SQL["schedules_look"], mine) if self._schedules else []
        return [(self._schedules[pipeline, name], due_in) for pipeline, name, due_in in rows]

    async def _run(self, schedule: Schedule) -> bool:
        """Runs a schedule's tick, if it is due and no other worker runs it; returns whether it was."""
        self._running.add(schedule)
        try:
            match await self._tick(schedule):
                case Ran(at):
                    log.info("%s ran for %s", schedule.label, at.isoformat())
                    self._ran.set()  # it may be due again
                    return True
                case Failed(due, error):
                    text = describe(error)
                    await self._link.repeat(SQL["schedule_fail"], {**_key(schedule), "due": due, "error": text})
                    told = texts.printable(text)
                    raised = from_handler(error)
                    log_with(log, logging.WARNING, raised, "%s failed, and is tried again: %s", schedule.label, told)
                    return True
            return False
        finally:
            self._running.discard(schedule)

    async def _tick(self, schedule: Schedule) -> Ran | Failed | None:
        """Runs a tick, in the event loop or in a thread; returns None if it isn't due or the database is away."""
        try:
            if inspect.iscoroutinefunction(schedule.function):
                return await self._in_loop(schedule)
            return await asyncio.to_thread(self._in_thread, schedule)
        except (psycopg.Error, OSError) as error:
            log.warning("%s: %s", schedule.label, first_line(error))
            return None

    async def _in_loop(self, schedule: Schedule) -> Ran | Failed | None:
        connecting = connect_async(self._dsn, "schedule", settings=READING, pooled=self._pooled)
        async with await connecting as conn:
            return await user_transaction.run_async(conn, _ticking(conn, schedule))

    def _in_thread(self, schedule: Schedule) -> Ran | Failed | None:
        with connect(self._dsn, "schedule", settings=READING, pooled=self._pooled) as conn:
            return user_transaction.run(conn, _ticking(conn, schedule))


class Ran(NamedTuple):
    """The tick of the time `at` is committed."""

    at: datetime


class Failed(NamedTuple):
    """The tick that was `due` has raised `error`, and nothing of it is committed."""

    due: datetime
    error: Exception


def _ticking(conn: Any, schedule: Schedule) -> Steps[Ran | Failed | None]:
    """Calls a schedule's function and moves the schedule on; does nothing if it isn't due or another worker runs it."""
    yield Begin(_mark(schedule))  # before anything is locked: from here on a frozen process is cut off
    taken = yield SQL["schedule_take"], _key(schedule)
    if not taken:
        return None
    ((due, now),) = taken
    try:
        at = schedule.tick(due, now)
        yield Call(partial(schedule.function, Tick(schedule.label, at, conn)), schedule.timeout)
        yield restore()
        if not (yield _advance(schedule, due, at, now)):
            raise HandlerError(
                "the function ended the transaction that it was given: use tick.connection.transaction()"
            )
        yield Commit()
    except Exception as error:
        return Failed(due, error)
    return Ran(at)


def _key(schedule: Schedule) -> dict[str, Any]:
    return {"pipeline": schedule.pipeline, "schedule": schedule.name}


def _mark(schedule: Schedule) -> Statement:
    return SQL["schedule_mark"], {"actor": f"schedule {schedule.label}", "idle_ms": idle_ms(schedule.timeout)}


def _advance(schedule: Schedule, due: datetime, at: datetime, now: datetime) -> Statement:
    following = schedule.after(at if schedule.catch_up else max(at, now))
    return SQL["schedule_advance"], {**_key(schedule), "due": due, "tick": at, "next": following}
