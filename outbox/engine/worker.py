"""Runs a worker: claims jobs of its stages, calls their handlers and commits the outcomes, until it is told to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg

from ..checks import check_number
from ..database.connection_group import ConnectionGroup
from ..database.link import PLANNING, Link
from ..definition.pipeline import Pipeline
from ..errors import DefinitionError
from ..process.service import Service, side_by_side
from ..texts import shown
from .attempt import Attempts
from .checkpoint import Checkpoints
from .claimer import Claimer
from .committer import COMMITS, Committer
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

log = logging.getLogger("outbox.worker")


class Worker:
    """Runs the stages of pipelines until `stop`. Any number of workers share the work.

    `stages` limits it to some ("enrich" or "posts.enrich"; default: all). `concurrency` is how many attempts run at
    once for each stage in this process; a stage's own `concurrency` holds across all workers. `lease` (seconds) is how
    long a frozen or cut-off process keeps its jobs; a killed process loses them in about a second. `grace` (seconds) is
    how long running handlers may take after `stop`. `listen_dsn` is a direct DSN when `dsn` goes through a pooler.
    `drain` ends the run when nothing is due. `notify=False` polls only. `on_standstill`, if given, is called in a
    thread with the reason when a handler has blocked the event loop for too long; see docs/handlers.md.

    `counts` tells how the attempts have ended, and `interrupted` how many handlers were still running at the end of the
    grace time. `left` names handlers that go on after `run` has returned, because they can't be interrupted.
    """

    _link: Callable[..., Link] = Link

    def __init__(
        self,
        pipelines: Pipeline[Any] | Iterable[Pipeline[Any]],
        dsn: str,
        *,
        stages: Sequence[str] | None = None,
        concurrency: int | None = None,
        listen_dsn: str | None = None,
        lease: float = 30.0,
        grace: float = 30.0,
        drain: bool = False,
        notify: bool = True,
        retention: Retention | None = None,
        on_standstill: Callable[[str], None] | None = None,
    ) -> None:
        check_number(lease, "lease", 0.5, 86_400)
        check_number(grace, "grace", 0, 86_400)
        check_number(concurrency or 1, "concurrency", 1, 10_000)
        self._pipelines = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
        for pipeline in self._pipelines:
            if not isinstance(pipeline, Pipeline):
                raise DefinitionError(f"pipelines: {shown(pipeline)} is not a Pipeline")
        self._pipelines += [reaction for pipeline in self._pipelines for reaction in pipeline.reactions.values()]
        self._lanes = Lanes.of(self._pipelines, stages, concurrency)
        # A worker for some stages leaves the schedules to workers that run all stages.
        self._schedules = [each for p in self._pipelines for each in p.schedules.values() if stages is None]
        self._dsn, self._listen_dsn, self._pooled = dsn, listen_dsn or dsn, listen_dsn not in (None, "", dsn)
        self._lease, self._grace, self._drain, self._notify = lease, grace, drain, notify
        self._retention = retention or Retention()
        self._service, self._on_standstill = Service("Worker"), on_standstill
        self.counts, self.interrupted = Counts(), 0
        self.left: list[str] = []

    async def run(self) -> None:
        """Works until `stop`, or, with `drain`, until nothing is due.

        Waits for a primary first. SchemaError or NotDeployed if it isn't ready for this code. After that, nothing that
        data or a restart of Postgres does ends it. WorkerBroken when handlers that don't end have taken all slots of a
        stage. Cancelled, it cancels its handlers, and releases their jobs.
        """
        shift = _Shift(self)
        try:
            await self._service.run(shift.run, *shift.closing)
        finally:
            self.interrupted, self.left = shift.winding_down.interrupted, shift.left()
            if self.left:
                log.error("still running, though the worker has stopped: %s", ", ".join(self.left))

    def stop(self) -> None:
        """Stops the worker: jobs that haven't started are released at once, running ones get `grace` seconds.

        A second call stops it at once. From another thread, use `loop.call_soon_threadsafe(worker.stop)`.
        """
        self._service.stop()


class _Shift:
    """One run of a worker: its steps, which share the jobs in flight and have connections of their own."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._service = worker, worker._service
        dsn, direct, pooled, retention = worker._dsn, worker._listen_dsn, worker._pooled, worker._retention
        group = ConnectionGroup()  # the lease cuts it
        link = partial(worker._link, dsn, pooled=pooled, settings=PLANNING, group=group)
        claims, commits = link("claim"), [link("commit") for _ in range(COMMITS)]
        reconciling = Link(dsn, "reconcile", pooled=pooled, group=group)
        self._inflight = inflight = InFlight(worker._lanes, worker.counts, draining=worker._drain)
        releaser = Releaser(commits[0], inflight)
        self._ready = Readiness(worker._pipelines, worker._lanes, retention, (dsn, direct), group, pooled=pooled)
        lease = Lease(direct, inflight, seconds=worker._lease, listen=worker._notify, group=group)
        self._claimer = Claimer(claims, lease, inflight, releaser)
        checkpoints = Checkpoints(link("checkpoint"))
        self._attempts = Attempts(dsn, inflight, releaser, checkpoints, group=group, pooled=pooled)
        committer = Committer(commits, link("commit"), inflight, releaser)
        self._maintenance = Maintenance(dsn, inflight, retention, lease=worker._lease, group=group, pooled=pooled)
        self._scheduler = Scheduler(dsn, worker._schedules, group=group, pooled=pooled)
        self.winding_down = WindingDown(worker._service, inflight, self._attempts, releaser, grace=worker._grace)
        standstill = Standstill(
            dsn, lease, inflight, self._attempts, group=group, seconds=worker._lease, give_up=worker._on_standstill,
            timeout=lambda: max(inflight.lanes.timeout(), self._scheduler.timeout()),
        )  # fmt: skip
        self._beside = [
            standstill.run, lease.run, lease.watch, group.watch, committer.run, committer.run_held_up,
            self._maintenance.run, self._attempts.watch, checkpoints.run,
            lambda: self._claimer.reconcile(reconciling), *([] if worker._drain else [self._scheduler.run]),
        ]  # fmt: skip
        self.closing = [
            self.winding_down.release_all, lease.leave, claims.close, *(each.close for each in commits),
            committer.close, reconciling.close, self._maintenance.close, self._attempts.close, self._scheduler.close,
            checkpoints.close,
        ]  # fmt: skip

    async def run(self) -> None:
        await self._ready.wait(self._service, patient=not self._worker._drain)
        if self._service.stopping:
            return
        working = side_by_side(self._work(), self._attempts.handlers.broken())
        await side_by_side(self.winding_down.after(working), *(loop() for loop in self._beside))

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
            if self._worker._drain and not more and await self._drained():
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
