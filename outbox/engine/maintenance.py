"""Does the queue's upkeep: promotes due jobs, frees the jobs of lost workers, folds counts, deletes old rows."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from ..database import killpoints, statements
from ..database.budget import Budget
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import Link, temporary
from ..texts import printable
from . import retention
from .apart import Apart
from .inflight import InFlight
from .retention import Retention

SQL = statements.load("maintenance")
log = logging.getLogger("outbox.maintenance")

Result = TypeVar("Result")

TICK = 1.0
"""Seconds between two ticks while nothing is due sooner. A killed worker's jobs wait for this long."""

GONE_AFTER = 0.5
"""Seconds for which a worker's lock must be missing: it may only be reconnecting."""

BATCH = 1_000
"""Most rows that one statement changes: it holds its locks for about ten milliseconds."""

FOLD_EVERY = 10.0
"""Seconds between two folds of the counts by status: a reader has to sum what is not folded yet."""

SAY_EVERY = 60.0
"""Seconds between two log lines about a part of the tick that keeps failing."""

_EACH = {"limit": BATCH, "now": None}

RETAIN_EVERY = 60.0
"""Seconds between two retention runs."""


class Maintenance:
    """The maintenance loop of one worker. It wakes the claimer when there may be work.

    `suspects` maps each worker that seems to have died to the time since when; a tick soon after decides.
    """

    def __init__(
        self,
        dsn: Dsn,
        inflight: InFlight,
        retention: Retention,
        *,
        lease: float,
        group: ConnectionGroup | None = None,
        pooled: bool = False,
    ) -> None:
        self._link = Link(dsn, "maintenance", pooled=pooled, group=group)
        self._retention = retention
        self._inflight = inflight
        self._patience = lease / 2
        self.suspects: dict[int, float] = {}
        self._connections = 0
        self._trust_from = 0.0
        self._fold_at = time.monotonic() + FOLD_EVERY * random.random()
        self._retain_at = time.monotonic() + RETAIN_EVERY * random.random()
        self._turn = asyncio.Lock()  # a draining worker also ticks on the same connection
        self._looks = Budget()
        self._apart = Apart(self._link)
        self._say_at: dict[str, float] = {}

    async def run(self) -> None:
        """Ticks until it is cancelled: about once a second, or sooner when a job is due."""
        while True:
            try:
                wait = await self.tick()
            except Exception as error:
                if not temporary(error):
                    log.error("maintenance: %s", printable(error))
                await self._link.pause(error)
                continue
            self._inflight.wakeups.next_due = time.monotonic() + wait
            self._inflight.wakeups.due_sooner.clear()
            try:
                await asyncio.wait_for(self._inflight.wakeups.due_sooner.wait(), wait)
            except TimeoutError:
                continue
            await asyncio.sleep(max(0.0, self._inflight.wakeups.next_due - time.monotonic()))

    async def tick(self, *, everything: bool = False) -> float:
        """Does what is due; returns the seconds until the next tick. `everything`: includes looks that take long."""
        async with self._turn:
            # The claimer of an idle worker rests. If its stages have work, this look wakes it.
            idle = list(self._inflight.lanes) if self._inflight.wakeups.idle else []
            started = time.monotonic()
            everything = everything or self._looks.allows(started)
            (
                (due_in, deadline_in, remind_in, orphans, parents, missing, late, lost, ready),
            ) = await self._link.execute(
                SQL["maintenance_look"],
                {
                    "now": None,
                    "everything": everything,
                    "pipelines": [name for name, _ in idle],
                    "stages": [name for _, name in idle],
                },
            )
            if everything:
                self._looks.begin(started)
                self._looks.spent(time.monotonic() - started)
            # Dead workers come first: this is the one part that must not be late.
            if await self._part("burying dead workers", self._bury(missing, late)) or lost:
                await self._part("freeing jobs of dead workers", self._sweep())
            if due_in is not None and due_in <= 0:
                due_in = await self._part("promoting jobs", self._promote())
            if deadline_in is not None and deadline_in <= 0:
                await self._part("firing deadlines", self._fire())
            if parents:
                await self._part("moving parents", self._join_parents())
            if orphans:
                await self._part("cancelling children", self._cancel_orphans())
            if remind_in is not None and remind_in <= 0:
                await self._part("reminding", self._remind())
            if ready:
                self._inflight.wakeups.wake()
            now = time.monotonic()
            if now >= self._fold_at:
                self._fold_at = now + FOLD_EVERY * random.uniform(0.8, 1.2)
                await self._part("folding counts", self._link.execute(SQL["counts_fold"], {}))
                await self._part("folding kinds of errors", self._link.execute(SQL["deaths_fold"], {}))
            if now >= self._retain_at:
                self._retain_at = now + RETAIN_EVERY * random.uniform(0.8, 1.2)
                for name, step in retention.steps(self._link, self._apart, self._retention):
                    await self._part(name, step)
            wait = GONE_AFTER if self.suspects else TICK * random.uniform(0.8, 1.2)
            # What is overdue and still there could not be done. It waits for the next tick.
            later = [seconds for seconds in (due_in, deadline_in, remind_in) if seconds is not None and seconds > 0]
            return min([wait, *(max(0.005, float(seconds)) for seconds in later)])

    async def _part(self, what: str, work: Awaitable[Result]) -> Result | None:
        """Does one part of a tick. If it fails, that is logged once in a while, and the other parts go on."""
        try:
            return await work
        except Exception as error:
            if temporary(error):
                raise
            if time.monotonic() >= self._say_at.get(what, 0.0):
                self._say_at[what] = time.monotonic() + SAY_EVERY
                log.error("maintenance: %s: %s", what, printable(error))
            return None

    async def _promote(self) -> float | None:
        """Makes due jobs ready; returns the seconds until more are due, if any are scheduled."""
        while True:
            killpoints.sending("K8")
            rows = await self._apart.run(SQL["jobs_promote_due"], SQL["jobs_to_promote"], "job of workflow", _EACH)
            promoted = sum(row[0] for row in rows)
            if promoted:
                self._inflight.wakeups.wake()
            if promoted < BATCH:
                next_due = rows[-1][1] if rows else None
                return None if next_due is None else float(next_due)

    async def _fire(self) -> None:
        """Moves workflows whose deadlines have passed."""
        total = 0
        while True:
            rows = await self._apart.run(SQL["deadlines_fire"], SQL["deadlines_to_fire"], "deadline of workflow", _EACH)
            moved = sum(row[1] for row in rows)
            total += moved
            if sum(row[0] for row in rows) < BATCH or not moved:
                break
        if total:
            log.info("%s workflows moved on at their deadline", total)
            self._inflight.wakeups.wake()

    async def _cancel_orphans(self) -> None:
        """Cancels the children of parents that have ended. Locked children are left for the next tick."""
        total, moved = 0, BATCH
        while moved == BATCH:
            rows = await self._apart.run(SQL["orphans_cancel"], SQL["orphans_to_cancel"], "child", _EACH)
            moved = sum(row[0] for row in rows)
            total += moved
        await self._link.execute(SQL["orphans_forget"], {})
        if total:
            log.info("%s workflows were cancelled, as their parents have ended", total)

    async def _join_parents(self) -> None:
        """Moves parents that could not move when their last child ended."""
        rows = await self._apart.run(SQL["parents_join"], SQL["parents_to_join"], "parent", _EACH)
        if moved := sum(row[0] for row in rows):
            log.info("%s parents moved on after their children", moved)
            self._inflight.wakeups.wake()

    async def _remind(self) -> None:
        """Passes questions on to their next assignee, and reminds the present ones."""
        await self._apart.run(SQL["approvals_escalate"], SQL["approvals_to_escalate"], "approval", _EACH)
        await self._apart.run(SQL["approvals_remind"], SQL["approvals_to_remind"], "approval", _EACH)

    async def _bury(self, missing: Sequence[int], late: bool) -> bool:
        """Takes the lease from workers that are gone: by the database's clock, or because their lock is not held.

        Returns whether there were any. After this connection itself was renewed it waits first: the whole database may
        have been away, so that all heartbeats are late.
        """
        now = time.monotonic()
        if self._link.connections != self._connections:
            first = self._connections == 0
            self._connections = self._link.connections
            self.suspects = {}
            self._trust_from = now if first else now + self._patience
        trusted = now >= self._trust_from
        self.suspects = {worker: self.suspects.get(worker, now) for worker in missing}
        dead = sorted(worker for worker, since in self.suspects.items() if trusted and now - since >= GONE_AFTER)
        for worker in dead:
            del self.suspects[worker]
        if not dead and not (late and trusted):
            return False
        rows = await self._link.execute(SQL["workers_bury"], {"dead": dead, "leases": trusted, "now": None})
        for worker, name in rows:
            log.warning("worker %s (%s) is gone; its jobs run again", worker, printable(name))
        return bool(rows)

    async def _sweep(self) -> None:
        while True:
            killpoints.sending("K7")
            rows = await self._apart.run(SQL["jobs_sweep"], SQL["jobs_to_sweep"], "job of workflow", _EACH)
            freed, dead = sum(row[0] for row in rows), sum(row[1] for row in rows)
            if freed or dead:
                log.log(
                    logging.ERROR if dead else logging.WARNING,
                    "freed %s jobs of lost workers; %s more were at their last attempt and are dead",
                    freed,
                    dead,
                )
                self._inflight.wakeups.wake()
            if freed + dead < BATCH:
                return

    async def close(self) -> None:
        await self._link.close()
