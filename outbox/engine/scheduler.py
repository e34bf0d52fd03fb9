"""Runs schedules: each tick once, on the worker that takes it first.

The schedule's row is locked while its function runs, and moves on in the function's own transaction. A tick that was
rolled back is due again, a tick that was committed is over, and no tick runs twice at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

import psycopg

from .. import texts
from ..database import statements, user_transaction
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import Link, first_line, idle_ms
from ..database.session import READING, clean, connect, connect_async, restore
from ..database.steps import Call, Statement
from ..database.user_transaction import Begin, Clean, Commit, Steps
from ..definition.failed_attempts import FailedAttempt, Reports
from ..definition.reasons import describe, from_handler, log_with
from ..definition.schedule import Schedule, SyncTick, Tick
from ..definition.step_transaction import Hook, call_after_commit, call_after_commit_sync
from ..errors import HandlerError
from ..process.service import cancel, is_cancelled
from ..process.threads import NoThread, Threads

SQL = statements.load("scheduler")
log = logging.getLogger("outbox.schedule")

LOOK_EVERY = 10.0
"""Seconds between two looks at schedules that aren't due: a deploy may have changed them."""

TRY_AGAIN = 1.0
"""Seconds, at most, until a schedule that is due is looked at again: it has failed, or another worker runs it."""


class Scheduler:
    """A worker's loop over its schedules, which run side by side."""

    def __init__(
        self,
        dsn: Dsn,
        schedules: Sequence[Schedule],
        reports: Reports,
        *,
        group: ConnectionGroup | None = None,
        pooled: bool = False,
    ) -> None:
        self._dsn, self._pooled, self._group = dsn, pooled, group
        self._schedules = {(schedule.pipeline, schedule.name): schedule for schedule in schedules}
        # Each tick has a connection of its own. Behind a pooler, its session is somebody else's afterwards.
        self._clean = Clean(clean("schedule", pooled=True), inside=True) if pooled else None
        self._link = Link(dsn, "schedules", pooled=pooled, group=group)
        self._running: dict[Schedule, asyncio.Task[Any]] = {}
        self._in_threads: dict[Schedule, float] = {}  # each with the time by which it should have ended
        self._foreign: set[Schedule] = set()
        self.context = contextvars.copy_context()
        self._reports = reports
        self._threads = Threads("schedule")
        self._ran = asyncio.Event()

    async def run(self) -> None:
        """Runs due schedules until it is cancelled."""
        try:
            while True:
                wait = LOOK_EVERY
                self._say_late()
                for schedule, due_in in await self._look():
                    if due_in <= 0 and schedule not in self._running:
                        self._start(schedule)
                    # An overdue schedule is looked at again soon, because another worker may be running it.
                    wait = min(wait, due_in if due_in > 0 else random.uniform(TRY_AGAIN / 2, TRY_AGAIN))
                self._ran.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ran.wait(), wait)
        finally:
            self._threads.close()  # first, because a cancelled tick would wait for its thread
            await cancel(*self._running.values())

    async def run_due(self) -> bool:
        """Runs, one after the other, all due schedules that no other worker runs; returns whether there were any."""
        due = [schedule for schedule, due_in in await self._look() if due_in <= 0]
        return any([await self._start(schedule) for schedule in due])

    async def close(self) -> None:
        self._threads.close()
        await self._link.close()

    def timeout(self) -> float:
        """Returns the longest timeout, in seconds, of the functions that are running."""
        return max((schedule.timeout for schedule in self._running), default=0.0)

    def left(self) -> list[str]:
        """Returns the names of the schedules whose functions are still running."""
        return [f"schedule {schedule.label}" for schedule in {**self._running, **self._in_threads}]

    async def _look(self) -> list[tuple[Schedule, float]]:
        """Returns the schedules deployed as this worker defines them, each with the seconds until it is due."""
        mine = {"pipelines": [name for name, _ in self._schedules], "schedules": [name for _, name in self._schedules]}
        rows = await self._link.repeat(SQL["schedules_look"], mine) if self._schedules else []
        found = [(self._schedules[pipeline, name], tuple(how), due_in) for pipeline, name, *how, due_in in rows]
        foreign = {schedule for schedule, how, _ in found if schedule.how != how}
        for schedule in foreign - self._foreign:
            log.warning(
                "%s is deployed with another time than this worker knows: its ticks are left to other workers",
                schedule.label,
            )
        self._foreign = foreign
        return [(schedule, due_in) for schedule, _, due_in in found if schedule not in foreign]

    def _start(self, schedule: Schedule) -> asyncio.Task[bool]:
        self._running[schedule] = task = asyncio.create_task(self._run(schedule), context=self.context.copy())
        return task

    async def _run(self, schedule: Schedule) -> bool:
        """Runs a schedule's tick if it is due and no other worker runs it; returns whether it did.

        No error in a tick ends the worker or affects other schedules.
        """
        try:
            match await self._tick(schedule):
                case Ran(at, _):
                    log.info("%s ran for %s", schedule.label, at.isoformat())
                    self._ran.set()  # it may be due again
                    return True
                case Failed(due, error) as ended:
                    await self._link.repeat(*put_off(schedule, ended))
                    told = texts.printable(describe(error))
                    raised = from_handler(error)
                    log_with(log, logging.WARNING, raised, "%s failed, and is tried again: %s", schedule.label, told)
                    failed = FailedAttempt(schedule.pipeline, schedule.name, due.isoformat(), None, TRY_AGAIN)
                    self._reports.tell(schedule.hooks.on_error, raised, failed)
                    return True
        except Exception as error:
            log.error("%s: %s", schedule.label, texts.printable(describe(error)), exc_info=from_handler(error))
        finally:
            self._running.pop(schedule, None)
        return False

    async def _tick(self, schedule: Schedule) -> Ran | Failed | None:
        """Runs a tick in the event loop or in a thread. Returns None if it isn't due or the database is unreachable."""
        try:
            if inspect.iscoroutinefunction(schedule.function):
                return await self._in_loop(schedule)
            return await self._threads.call(partial(self._in_thread, schedule))  # type: ignore[no-any-return]
        except (psycopg.Error, OSError, NoThread) as error:
            log.warning("%s: %s", schedule.label, first_line(error))
            return None

    async def _in_loop(self, schedule: Schedule) -> Ran | Failed | None:
        connecting = connect_async(self._dsn, "schedule", settings=READING, pooled=self._pooled, group=self._group)
        async with await connecting as conn:
            ended = await user_transaction.run_async(conn, ticking(conn, schedule), self._clean)
        if isinstance(ended, Ran):
            await call_after_commit(ended.hooks, f"schedule {schedule.label}", schedule.timeout, log)
        return ended

    def _in_thread(self, schedule: Schedule) -> Ran | Failed | None:
        self._in_threads[schedule] = time.monotonic() + schedule.timeout
        try:
            with connect(self._dsn, "schedule", settings=READING, pooled=self._pooled, group=self._group) as conn:
                ended = user_transaction.run(conn, ticking(conn, schedule), self._clean)
            if isinstance(ended, Ran):
                call_after_commit_sync(ended.hooks, f"schedule {schedule.label}", log)
            return ended
        finally:
            self._in_threads.pop(schedule, None)

    def _say_late(self) -> None:
        """Logs once which plain functions exceed their timeout. This worker doesn't run them again until they end."""
        for schedule, until in list(self._in_threads.items()):
            if time.monotonic() > until:
                self._in_threads[schedule] = float("inf")
                log.error("%s hangs in its thread, after its timeout of %g s", schedule.label, schedule.timeout)


class Ran(NamedTuple):
    """The tick for the time `at` was committed, and `hooks` are to be called."""

    at: datetime
    hooks: Sequence[Hook]


class Failed(NamedTuple):
    """The tick due at `due` raised `error`, and nothing of it was committed."""

    due: datetime
    error: BaseException


def ticking(conn: Any, schedule: Schedule) -> Steps[Ran | Failed | None]:
    """Calls a schedule's function and moves the schedule on, unless it isn't due or another worker runs it."""
    yield Begin(_mark(schedule))  # before anything is locked, so that Postgres can cut off a process that freezes
    cron, timezone, catch_up = schedule.how
    as_known = {"cron": cron, "timezone": timezone, "catch_up": catch_up}
    taken = yield SQL["schedule_take"], {**_key(schedule), **as_known}
    if not taken:
        return None
    ((due, now),) = taken
    try:
        at = schedule.tick(due, now)
        kind: Any = Tick if isinstance(conn, psycopg.AsyncConnection) else SyncTick
        tick = kind(schedule.label, at, conn)
        transaction = tick._in_transaction()
        try:
            yield Call(partial(schedule.function, tick), schedule.timeout)
        finally:
            transaction.end()
        transaction.require()
        yield restore()
        if not (yield _advance(schedule, due, at, now)):
            raise HandlerError(
                "the function ended the transaction that it was given: use tick.connection.transaction()"
            )
        yield Commit()
    except BaseException as error:  # a handler may raise anything
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise  # the worker's own cancellation, not the function's
        return Failed(due, error)
    return Ran(at, transaction.hooks)


def put_off(schedule: Schedule, ended: Failed) -> Statement:
    """Returns the statement that stores why a tick has failed, and when it is tried again."""
    return SQL["schedule_fail"], {**_key(schedule), "due": ended.due, "error": describe(ended.error)}


def _key(schedule: Schedule) -> dict[str, Any]:
    return {"pipeline": schedule.pipeline, "schedule": schedule.name}


def _mark(schedule: Schedule) -> Statement:
    return SQL["schedule_mark"], {"actor": f"schedule {schedule.label}", "idle_ms": idle_ms(schedule.timeout)}


def _advance(schedule: Schedule, due: datetime, at: datetime, now: datetime) -> Statement:
    following = schedule.after(at if schedule.catch_up else max(at, now))
    return SQL["schedule_advance"], {**_key(schedule), "due": due, "tick": at, "next": following}
