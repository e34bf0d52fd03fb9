"""One run of a worker: its steps, which share the jobs in flight and have connections of their own."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import PLANNING, Link
from ..definition.failed_attempts import Reports
from ..definition.lifespan import Lifespans
from ..definition.pipeline import Pipeline
from ..definition.schedule import Schedule
from ..process.embedding import Signs
from ..process.service import Service, side_by_side
from .attempt import Attempts
from .claimer import Claimer
from .committer import COMMITS, Committer
from .effects import Ledger
from .inflight import Counts, InFlight
from .lane import Lanes
from .lease import Lease
from .maintenance import Maintenance
from .ready import Readiness
from .release import Releaser
from .retention import Retention
from .scheduler import Scheduler
from .standstill import Standstill
from .winding_down import WindingDown


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker was told, checked. See Worker for the options."""

    pipelines: Sequence[Pipeline[Any]]
    schedules: Sequence[Schedule]
    dsn: Dsn
    listen_dsn: Dsn
    pooled: bool
    lease: float
    grace: float
    drain: bool
    notify: bool
    retention: Retention
    on_standstill: Callable[[str], None] | None
    release: str | None


class Shift:
    """Works on these lanes until it is told to stop. `link` makes the connections of claims and commits."""

    def __init__(
        self, terms: Terms, lanes: Lanes, counts: Counts, service: Service, lifespans: Lifespans,
        link: Callable[..., Link] = Link,
    ) -> None:  # fmt: skip
        self._terms, self._service, self._lifespans = terms, service, lifespans
        dsn, direct, pooled, retention = terms.dsn, terms.listen_dsn, terms.pooled, terms.retention
        group = ConnectionGroup()  # the lease cuts it
        link = partial(link, dsn, pooled=pooled, settings=PLANNING, group=group)
        claims, commits = link("claim"), [link("commit") for _ in range(COMMITS)]
        reconciling = Link(dsn, "reconcile", pooled=pooled, group=group)
        self._inflight = inflight = InFlight(lanes, counts, draining=terms.drain)
        releaser = Releaser(commits[0], inflight)
        self._ready = Readiness(terms.pipelines, lanes, retention, (dsn, direct), group, pooled=pooled)
        self._lease = lease = Lease(
            direct,
            inflight,
            seconds=terms.lease,
            listen=terms.notify,
            group=group,
            begun=service.begin,
            release=terms.release,
        )
        self._claimer = Claimer(claims, lease, inflight, releaser)
        checkpoints = Ledger(link("checkpoint"), lease)
        self._attempts = Attempts(dsn, inflight, releaser, checkpoints, group=group, pooled=pooled)
        reports = Reports()
        committer = Committer(commits, link("commit"), inflight, releaser, reports)
        self._maintenance = Maintenance(dsn, inflight, retention, lease=terms.lease, group=group, pooled=pooled)
        self._scheduler = Scheduler(dsn, terms.schedules, reports, group=group, pooled=pooled)
        self.winding_down = WindingDown(service, inflight, self._attempts, releaser, grace=terms.grace)
        self._standstill = standstill = Standstill(
            dsn, lease, inflight, self._attempts, group=group, seconds=terms.lease, give_up=terms.on_standstill,
            timeout=lambda: max(inflight.lanes.timeout(), self._scheduler.timeout()),
        )  # fmt: skip
        self._beside = [
            standstill.run, lease.run, lease.watch, group.watch, committer.run, committer.run_held_up,
            self._maintenance.run, self._attempts.watch, checkpoints.run,
            lambda: self._claimer.reconcile(reconciling), *([] if terms.drain else [self._scheduler.run]),
        ]  # fmt: skip
        self.closing = [
            self.winding_down.release_all, lease.leave, claims.close, *(each.close for each in commits),
            committer.close, reconciling.close, self._maintenance.close, self._attempts.close, self._scheduler.close,
            checkpoints.close, reports.close,
        ]  # fmt: skip

    async def run(self) -> None:
        await self._ready.wait(self._service, patient=not self._terms.drain)
        await self._lifespans.open(self._service)
        if self._service.stopping:
            return
        # What a lifespan sets as a context variable is there in each attempt, and in each tick.
        self._attempts.context = self._scheduler.context = contextvars.copy_context()
        working = side_by_side(self._work(), self._attempts.handlers.broken())
        await side_by_side(self.winding_down.after(working), *(loop() for loop in self._beside))

    def signs(self) -> Signs:
        """Returns how this run is. Any thread may ask, also one that sees the event loop stand still."""
        lease, inflight = self._lease, self._inflight
        lanes = inflight.lanes.values()
        return Signs(
            lease.is_listening, lease.beaten if lease.id else None, lease.trusted,
            in_flight=sum(len(lane.running) for lane in lanes), waiting=sum(len(lane.waiting) for lane in lanes),
            uncommitted=inflight.uncommitted + inflight.held_up, trouble=self._standstill.trouble,
        )  # fmt: skip

    def left(self) -> list[str]:
        """Returns the names of the handlers that are still running."""
        return [*self._attempts.handlers.left(), *self._scheduler.left()]

    async def _work(self) -> None:
        inflight, claimer, attempts = self._inflight, self._claimer, self._attempts
        while True:
            lanes = await inflight.room()  # 1 wait for room
            more = await claimer.turn(lanes)  # 2 claim
            for lane, _ in lanes:  # 3 start; each attempt hands its outcome to the committer
                attempts.start(lane)
            for lane in await claimer.store_in_progress(lanes):
                attempts.start(lane)
            if self._terms.drain and not more and await self._drained():
                return
            await claimer.rest()  # 4 until woken, there is room, or the poll delay is over

    async def _drained(self) -> bool:
        """Returns whether nothing is due: not here, not scheduled, and not held by a worker that has died."""
        if not self._inflight.drained():
            return False
        with suppress(psycopg.Error, OSError):
            await self._maintenance.tick(everything=True)
            if await self._scheduler.run_due():
                self._inflight.wakeups.wake()
            return self._inflight.drained() and not self._maintenance.suspects
        return False
