"""Step 2: take jobs with a lease, as many of each stage as there is room for; give them back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import psycopg

from ..database import killpoints
from ..database.link import Link, temporary
from ..texts import printable
from . import claim
from .job import Job
from .lane import ROW_COST, Lane, Lanes
from .lease import Keeper
from .pacing import ServerClock

log = logging.getLogger("outbox.worker")

POLL_FIRST = 0.02
IDLE_AFTER = 0.1
"""Seconds of poll delay from which on the worker asks to be notified."""

IDLE_POLL = 5.0
"""Seconds between polls of an idle worker, which maintenance wakes within a second if there is work."""

ROOM_LINGER = 0.002
MOST_UNCOMMITTED = 2_000
RECONCILE_EVERY = 5.0


class Claimer:
    """The claiming loop: one fetcher a process, polling from 20 ms on, at once where there may be more."""

    def __init__(
        self,
        link: Link,
        lanes: Lanes,
        keeper: Keeper,
        *,
        uncommitted: Callable[[], int],
        careful: Callable[[], bool],
        known: Callable[[], list[str]],
        on_claimed: Callable[[Lane], None],
        on_lost: Callable[[str], None],
        not_held: Callable[[list[Job]], Awaitable[None]],
        on_refused: Callable[[Job, Exception], None],
    ) -> None:
        self._link = link
        self._lanes = lanes
        self._keeper = keeper
        self._uncommitted = uncommitted
        self._careful = careful
        self._known = known
        self._on_claimed = on_claimed
        self._on_lost = on_lost
        self._not_held = not_held
        self._on_refused = on_refused
        self._woken, self._roomy = asyncio.Event(), asyncio.Event()
        self._clock = ServerClock()
        self.idle = False
        self._unanswered = False

    def wake(self, *, back: bool = True) -> None:
        """Look for work now: somebody says that there may be some. `back`: it may have come back with an old id."""
        if back:
            for lane in self._lanes.values():
                lane.scan_all()
            self._release(list(self._lanes.values()))
        self._woken.set()

    def room(self) -> None:
        """Take note that a lane has room again."""
        self._roomy.set()

    def committed(self) -> None:
        """Take note that jobs are no longer held: where a stage had its fill, others may begin."""
        self._release([lane for lane in self._lanes.values() if lane.stage.limits and lane.stage.limits.crowded])

    def _release(self, lanes: Sequence[Lane]) -> None:
        held = [lane for lane in lanes if lane.held_until]
        for lane in held:
            lane.held_until = 0.0
        if held:
            self._woken.set()
            self._roomy.set()

    @property
    def woken(self) -> bool:
        return self._woken.is_set()

    def forget(self) -> None:
        """The worker has a new id: what was said of the old one no longer holds."""
        self.idle = False

    async def run(self, drained: Callable[[], Awaitable[bool]] | None) -> None:
        """Claim for ever; or, with `drained`, until it says so of a moment in which nothing was found."""
        delay = POLL_FIRST
        while True:
            await self._keeper.registered.wait()
            lanes = self._with_room()
            if not lanes or self._uncommitted() > MOST_UNCOMMITTED:
                self._roomy.clear()
                await _until(self._roomy, self._held_for())
                continue
            self._woken.clear()
            try:
                if self._unanswered:
                    await self._give_back_unknown(self._link, 0)
                self._unanswered = True
                found, full = await self._claim(lanes)
                self._unanswered = False
            except Exception as error:
                if not temporary(error):
                    log.error("claim: %s", printable(str(error)))
                await self._link.pause(error)
                continue
            if found:
                delay = POLL_FIRST
                if self.idle:
                    await self._set_idle(False)
            if full:
                await self._wait_for_room()
                continue
            if drained is not None and not found and await drained():
                return
            if not self.idle and delay > IDLE_AFTER:
                await self._set_idle(True)
                continue  # one more look: what came before the flag was seen has notified nobody
            if await _until(self._woken, min(delay, self._held_for() or delay)):
                delay = POLL_FIRST
            else:
                delay = IDLE_POLL if self.idle else delay * 2

    def _with_room(self) -> list[tuple[Lane, int]]:
        """The lanes that may have more, and how much, but for those that their limits hold up."""
        now = time.monotonic()
        return [(lane, room) for lane in self._lanes.values() if lane.held_until <= now and (room := lane.room()) > 0]

    def _held_for(self) -> float | None:
        """Seconds until the first stage may go on that its limits hold up; None: there is none."""
        now = time.monotonic()
        return min((lane.held_until - now for lane in self._lanes.values() if lane.held_until > now), default=None)

    async def reconcile(self, link: Link) -> None:
        """Give back, now and then, what a claim took after its connection was given up: it may have run on."""
        while True:
            await asyncio.sleep(RECONCILE_EVERY)
            if self._keeper.id and self._link.connections > 1:
                with contextlib.suppress(psycopg.Error, OSError):
                    await self._give_back_unknown(link, RECONCILE_EVERY)

    async def _give_back_unknown(self, link: Link, age: float) -> None:
        rows = await link.execute(*claim.give_back_unknown(self._keeper.id, self._known(), age))
        if rows:
            log.info("gave back %s jobs whose claim was never answered", len(rows))

    async def _claim(self, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        """Claim for these lanes and hand on what came. Returns how many, and whether there may be more."""
        worker = self._keeper.id
        found, full = 0, False
        if free := [(lane, room) for lane, room in lanes if lane.stage.limits is None]:
            found, full = await self._claim_free(worker, free)
        if limited := [(lane, room) for lane, room in lanes if lane.stage.limits is not None]:
            more, again = await self._claim_limited(worker, limited)
            found, full = found + more, full or again
        if found:
            killpoints.passing("K1")
        if worker != self._keeper.id:
            self._on_lost("the lease was lost during a claim")
        for lane, _ in lanes:
            if lane.stage.running and lane.waiting:
                await self._start(lane)
            self._on_claimed(lane)
        return found, full

    async def _claim_free(self, worker: int, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        started = time.monotonic()
        statement, params = claim.request(worker, lanes, started, careful=self._alone())
        rows = await self._link.execute(statement, params)
        cost = max(0.0, time.monotonic() - started - len(rows) * ROW_COST)
        got = claim.receive(worker, self._lanes, rows)
        full = False
        for (lane, asked), mark in zip(lanes, params["marks"], strict=True):
            ids = got.get(lane, [])
            lane.scanned(mark, asked, ids, cost)
            full = full or len(ids) >= asked
        return len(rows), full

    async def _claim_limited(self, worker: int, lanes: Sequence[tuple[Lane, int]]) -> tuple[int, bool]:
        sent, connections = time.monotonic(), self._link.connections
        statement, params = claim.request_limited(worker, lanes, self._clock.lead, careful=self._alone())
        rows = await self._link.execute(statement, params)
        if self._link.connections != connections:
            self._clock.forget()
        got = claim.receive_limited(worker, self._lanes, rows, self._clock, sent)
        full = False
        for lane, asked in lanes:
            count, again = got.get(lane, (0, None))
            if again is not None:
                again = 0.0 if count >= asked else min(max(again, 0.0 if count else POLL_FIRST), IDLE_POLL)
            lane.held_for(again)
            full = full or count >= asked
        return sum(count for count, _ in got.values()), full

    def _alone(self) -> bool:
        """Whether this process has no job that may kill it, nor one that is not committed yet: it may take one."""
        return not any(lane.careful for lane in self._lanes.values()) and not self._careful()

    async def _start(self, lane: Lane) -> None:
        """Store the in-progress status of the jobs that have just come."""
        fresh = [job for job in lane.waiting if job.status == lane.stage.on]
        if not fresh:
            return
        try:
            # Until it is answered: a lane that is full of what has not begun has no room, and nobody comes here again.
            versions = dict(await self._link.repeat(*claim.start(fresh)))
        except psycopg.Error as error:
            # A pipeline that was deployed meanwhile doesn't know this change, for any of them.
            for job in fresh:
                if lane.remove(job):
                    self._on_refused(job, error)
            return
        for job in fresh:
            if job.workflow_id in versions:
                job.status, job.version = str(lane.stage.running), versions[job.workflow_id]
            elif lane.remove(job):
                await self._not_held([job])

    async def _wait_for_room(self) -> None:
        """Wait until a claim is worth its round trip: a good part of a lane is free, or a moment has passed."""
        self._roomy.clear()
        if any(room * 4 > lane.slots for lane, room in self._with_room()):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._roomy.wait(), 1.0)
        await asyncio.sleep(ROOM_LINGER)

    async def _set_idle(self, idle: bool) -> None:
        with contextlib.suppress(psycopg.Error, OSError):
            if await self._keeper.set_idle(self._link, idle):
                self.idle = idle


async def _until(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event, at most so long. Returns whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
