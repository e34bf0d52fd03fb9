"""Claims jobs for the lanes that have room, and decides when to claim again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

import psycopg

from ..database import killpoints
from ..database.link import Link, temporary
from ..definition.reasons import describe
from ..texts import printable
from . import claim, commit
from .inflight import InFlight
from .job import Job, fail, newer_worker
from .lane import Lane
from .lease import Lease
from .pacing import ServerClock
from .release import HELD_UP, Releaser

log = logging.getLogger("outbox.worker")

POLL_FIRST, POLL_UNTOLD = 0.02, 0.002
"""Seconds to wait after a claim that found nothing, doubled each time; and where no notification would come first."""

IDLE_AFTER = 0.1
"""Seconds: once the poll delay is longer, the worker asks to be notified, however many jobs came before."""

IDLE_POLL = 5.0
"""Seconds between polls of an idle worker. Maintenance wakes it within a second if there is work."""

RECONCILE_EVERY = 5.0
"""Seconds between two checks for claimed jobs whose answer was lost, and the age from which a job counts as lost."""

UNKNOWN_HERE = {"OB001", "OB003"}
"""SQLSTATEs of a change that the pipeline, as it is deployed, doesn't know: only other code can run the job."""

ROW_COST = 20e-6
"""Seconds of a claim's duration that each row accounts for. The rest is the cost of the scan."""


class Claimer:
    """Claims on a connection of its own, in one round trip, as many jobs as the lanes have room for."""

    def __init__(self, link: Link, lease: Lease, inflight: InFlight, releaser: Releaser) -> None:
        self._link = link
        self._lease = lease
        self._inflight = inflight
        self._releaser = releaser
        self._clock = ServerClock()
        self._delay = POLL_UNTOLD
        self._found, self._full, self._full_before = 0, False, False
        self._unanswered = False
        self._connections = 0

    async def turn(self, lanes: Sequence[tuple[Lane, int]]) -> bool:
        """Claims up to the given number of jobs for each lane; returns whether there were any, or may be more."""
        await self._lease.registered.wait()
        self._inflight.wakeups.claiming()
        self._full_before, self._found, self._full = self._full, 0, bool(lanes)
        if not lanes:
            return False
        try:
            if self._unanswered:
                await self._agree()
            self._unanswered = True
            self._found, self._full = await self._claim(lanes)
            self._unanswered = False
        except Exception as error:
            if not temporary(error):
                log.error("claim: %s", printable(str(error)))
            await self._link.pause(error)
            return True
        return bool(self._found) or self._full

    async def store_in_progress(self, lanes: Sequence[tuple[Lane, int]]) -> list[Lane]:
        """Stores the in-progress status of newly claimed jobs; returns the lanes that may now start more."""
        fresh = [lane for lane, _ in lanes if lane.stage.running and lane.waiting]
        for lane in fresh:
            await self._store_in_progress(lane)
        return fresh

    async def rest(self) -> None:
        """Waits until another claim is worth its round trip: after a wake-up, when there is room, or after a delay."""
        wakeups, now = self._inflight.wakeups, time.monotonic()
        # One full claim is no load: the lane may have one slot.
        if wakeups.idle and ((self._full and self._full_before) or wakeups.notices.too_many(now)):
            wakeups.notices.stopped(now)
            await self._set_idle(False)
        if self._found:
            self._poll_soon()
        elif wakeups.announced:
            wakeups.wake()  # a job with an older id may have been committed late: look from zero
        if self._full:
            if self._found:
                await self._inflight.more_room()
            return
        rarely = self._lease.listens and wakeups.notices.may_ask(now)
        if not wakeups.idle and (rarely or self._delay > IDLE_AFTER) and await self._set_idle(True):
            wakeups.notices.asked(now)
            # Look once more: what came before the flag was visible has notified no worker. So has what was begun before
            # and commits later: hence the polls go on from the shortest delay.
            self._poll_soon()
            return
        if await wakeups.until_work(self._delay):
            self._poll_soon()
        else:
            self._delay = min(2 * self._delay, IDLE_POLL)

    def _poll_soon(self) -> None:
        self._delay = POLL_FIRST if self._inflight.wakeups.idle else POLL_UNTOLD

    async def reconcile(self, link: Link) -> None:
        """Periodically releases jobs taken by a claim that went on after its connection was given up."""
        while True:
            await asyncio.sleep(RECONCILE_EVERY)
            if self._lease.id and self._link.connections > 1:
                with contextlib.suppress(psycopg.Error, OSError):
                    await self._release_unknown(link, RECONCILE_EVERY)

    async def _agree(self) -> None:
        """Makes this process and the database agree on what it holds: an answer was lost, or a failover lost claims.

        Such a claim can be made once more, under the same fence, so the attempt of the first one must end before.
        """
        missing: list[Job] = []
        await self._link.connection()
        if self._link.connections != self._connections and (known := self._inflight.claimed(self._lease.id)):
            held = {row[0] for row in await self._link.execute(*commit.still_held(known))}
            missing = [job for job in known if job.workflow_id not in held]
        await self._release_unknown(self._link, 0)
        # Not before this answer: what has just committed by itself has ended by now, and is not taken away.
        self._inflight.lose_some(missing, "the database doesn't know its claim any more")
        self._connections = self._link.connections

    async def _release_unknown(self, link: Link, age: float) -> None:
        rows = await link.execute(*claim.release_unknown(self._lease.id, self._inflight.held(), age))
        if rows:
            log.info("released %s jobs whose claim was never answered", len(rows))

    async def _claim(self, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        """Claims for these lanes. Returns how many jobs came, and whether there may be more."""
        worker = self._lease.id
        found, full = 0, False
        if free := [(lane, room) for lane, room in lanes if lane.stage.limits is None]:
            found, full = await self._claim_free(worker, free)
        if limited := [(lane, room) for lane, room in lanes if lane.stage.limits is not None]:
            more, again = await self._claim_limited(worker, limited)
            found, full = found + more, full or again
        if found:
            killpoints.passing("K1")
        if worker != self._lease.id:
            self._inflight.lose("the lease was lost during a claim")
        return found, full

    async def _claim_free(self, worker: int, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        started = time.monotonic()
        statement, params = claim.request(worker, lanes, started, careful=self._inflight.may_take_careful())
        rows = await self._link.execute(statement, params)
        cost = max(0.0, time.monotonic() - started - len(rows) * ROW_COST)
        got = claim.receive(worker, self._inflight.lanes, rows)
        full = False
        for (lane, asked), mark in zip(lanes, params["marks"], strict=True):
            ids = got.get(lane, [])
            lane.scan.found(mark, asked, ids, cost)
            full = full or len(ids) >= asked
        return len(rows), full

    async def _claim_limited(self, worker: int, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        sent, connections = time.monotonic(), self._link.connections
        careful = self._inflight.may_take_careful()
        rows = await self._link.execute(*claim.request_limited(worker, lanes, self._clock.lead, careful=careful))
        if self._link.connections != connections:
            self._clock.forget()
        got = claim.receive_limited(worker, self._inflight.lanes, rows, self._clock, sent)
        full = False
        for lane, asked in lanes:
            count, again = got.get(lane, (0, None))
            if again is not None:
                again = 0.0 if count >= asked else min(max(again, 0.0 if count else POLL_FIRST), IDLE_POLL)
            lane.held_for(again)
            full = full or count >= asked
        return sum(count for count, _ in got.values()), full

    async def _store_in_progress(self, lane: Lane) -> None:
        fresh = [job for job in lane.waiting if job.status in lane.stage.on]
        if not fresh:
            return
        try:
            # Repeats until answered: a lane full of jobs that can't start has no room, so no claim would retry this.
            versions = dict(await self._link.repeat(*claim.start(fresh)))
        except psycopg.Error as error:
            # A pipeline that was deployed meanwhile doesn't know this change, for any of them.
            for job in [job for job in fresh if lane.remove(job)]:
                if error.sqlstate in UNKNOWN_HERE:
                    await self._releaser.put_back([job], newer_worker(describe(error)))
                else:
                    self._inflight.end(job, fail(job, error))
            return
        for job in fresh:
            if job.workflow_id in versions:
                job.status, job.version = str(lane.stage.running), versions[job.workflow_id]
            elif lane.remove(job):
                if await self._releaser.is_unchanged(job):
                    await self._releaser.put_back([job], HELD_UP)
                else:
                    await self._releaser.not_held([job])

    async def _set_idle(self, idle: bool) -> bool:
        """Stores whether to notify this worker. Returns False if that failed, or its lease was taken away."""
        with contextlib.suppress(psycopg.Error, OSError):
            if await self._lease.set_idle(self._link, idle):
                self._inflight.wakeups.idle = idle
        return self._inflight.wakeups.idle == idle
