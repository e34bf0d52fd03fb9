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
from typing import Any

import psycopg

from .. import texts
from ..database import statements
from ..database.dsn import engine_conninfo
from ..database.link import Link, first_line, idle_ms, reclaim
from ..definition.schedule import Schedule, Tick
from ..errors import HandlerError

SQL = statements.load("scheduler")


log = logging.getLogger("outbox.schedule")


LOOK_EVERY = 10.0
"""Seconds between two looks at schedules that aren't due: a deploy may have changed them."""


class Scheduler:
    """A worker's loop over its schedules; each runs beside the others."""

    def __init__(self, dsn: str, schedules: Sequence[Schedule], *, pooled: bool = False) -> None:
        self._dsn = engine_conninfo(dsn, "schedule")
        self._schedules = {(schedule.pipeline, schedule.name): schedule for schedule in schedules}
        self._link = Link(dsn, "schedules", pooled=pooled)
        self._running: set[Schedule] = set()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Run what is due, for ever."""
        async with asyncio.TaskGroup() as ticks:
            while True:
                wait = LOOK_EVERY
                for schedule, due_in in await self._look():
                    if due_in <= 0 and schedule not in self._running:
                        ticks.create_task(self._run(schedule))
                    # What is overdue is looked at again soon: another worker may have it in hand.
                    wait = min(wait, due_in if due_in > 0 else random.uniform(0.5, 1))
                self._ended.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), wait)

    async def run_due(self) -> bool:
        """Run all that is due and that nobody else runs, one after the other; whether there was anything."""
        due = [schedule for schedule, due_in in await self._look() if due_in <= 0]
        return any([await self._run(schedule) for schedule in due])

    async def close(self) -> None:
        await self._link.close()

    async def _look(self) -> list[tuple[Schedule, float]]:
        """Return the schedules and in how many seconds each is due."""
        mine = {"pipelines": [name for name, _ in self._schedules], "schedules": [name for _, name in self._schedules]}
        rows = await self._link.repeat(SQL["schedules_look"], mine) if self._schedules else []
        return [(self._schedules[pipeline, name], due_in) for pipeline, name, due_in in rows]

    async def _run(self, schedule: Schedule) -> bool:
        """Run a schedule's tick, if it is due and nobody else runs it; whether it was."""
        self._running.add(schedule)
        try:
            if inspect.iscoroutinefunction(schedule.function):
                ran = await self._tick(schedule)
            else:
                ran = await asyncio.to_thread(self._tick_sync, schedule)
        except Failed as failed:
            text = texts.describe(failed.error)
            await self._link.repeat(SQL["schedule_fail"], {**_key(schedule), "due": failed.due, "error": text})
            log.warning("%s failed, and will be tried again: %s", schedule.label, texts.printable(text))
            return True
        except (psycopg.Error, OSError) as error:
            log.warning("%s: %s", schedule.label, first_line(error))
            return False
        finally:
            self._running.discard(schedule)
        if ran:
            self._ended.set()  # and may be due again
        return ran

    async def _tick(self, schedule: Schedule) -> bool:
        async with await psycopg.AsyncConnection.connect(self._dsn, prepare_threshold=None) as conn:
            await conn.execute(*_mark(schedule))  # before anything is locked: from here on a frozen process is cut off
            taken = await (await conn.execute(SQL["schedule_take"], _key(schedule))).fetchone()
            if taken is None:
                return False
            due, now = taken
            try:
                at = schedule.tick(due, now)
                async with asyncio.timeout(schedule.timeout):
                    await schedule.function(Tick(schedule.label, at, conn))
                reclaim(conn)
                _require(await (await conn.execute(*_advance(schedule, due, at, now))).fetchone())
                await conn.commit()
            except Exception as error:
                raise Failed(due, error) from None
        log.info("%s ran for %s", schedule.label, at.isoformat())
        return True

    def _tick_sync(self, schedule: Schedule) -> bool:
        """The same for a sync function, in the calling thread. Nothing ends it but itself."""
        with psycopg.connect(self._dsn, prepare_threshold=None) as conn:
            conn.execute(*_mark(schedule))
            taken = conn.execute(SQL["schedule_take"], _key(schedule)).fetchone()
            if taken is None:
                return False
            due, now = taken
            try:
                at = schedule.tick(due, now)
                schedule.function(Tick(schedule.label, at, conn))
                reclaim(conn)
                _require(conn.execute(*_advance(schedule, due, at, now)).fetchone())
                conn.commit()
            except Exception as error:
                raise Failed(due, error) from None
        log.info("%s ran for %s", schedule.label, at.isoformat())
        return True


class Failed(Exception):
    """The function of a tick raised `error`; what it had written is rolled back."""

    def __init__(self, due: datetime, error: Exception) -> None:
        super().__init__(str(error))
        self.due = due
        self.error = error


def _key(schedule: Schedule) -> dict[str, Any]:
    return {"pipeline": schedule.pipeline, "schedule": schedule.name}


def _require(advanced: Any) -> None:
    if advanced is None:
        raise HandlerError("the function ended the transaction that it was given: use tick.connection.transaction()")


def _mark(schedule: Schedule) -> tuple[bytes, dict[str, Any]]:
    return SQL["schedule_mark"], {"actor": f"schedule {schedule.label}", "idle_ms": idle_ms(schedule.timeout)}


def _advance(schedule: Schedule, due: datetime, at: datetime, now: datetime) -> tuple[bytes, dict[str, Any]]:
    following = schedule.after(at if schedule.catch_up else max(at, now))
    return SQL["schedule_advance"], {**_key(schedule), "due": due, "tick": at, "next": following}
