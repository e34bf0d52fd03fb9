"""The worker: claims jobs of its stages, has handlers run them and commits what comes out, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from ..checks import check_number
from ..database.link import PLANNING, Link
from ..definition.pipeline import Pipeline
from ..errors import DefinitionError, WorkerBroken
from ..service import Service, side_by_side
from ..texts import shown
from .attempt import Attempts
from .checkpoint import Checkpoints
from .claimer import Claimer
from .committer import Committer
from .inflight import Counts, InFlight
from .lane import Lanes
from .lease import Lease
from .maintenance import Maintenance
from .ready import Readiness
from .release import Releaser
from .retention import Retention
from .scheduler import Scheduler
from .standstill import Standstill

log = logging.getLogger("outbox.worker")

COMMITS = 3
"""Batches that are committed at once: with one alone, Postgres idles while Python works, and while the disk does."""

RELEASE_WITHIN = 10.0
"""Seconds in which a worker that stops tries to release what it has not finished: else its lease's end does it."""

CANCEL_WITHIN = 1.0
"""Seconds that handlers may take to end after they were cancelled: then their jobs are released."""

COMMIT_WITHIN = 1.0
"""Seconds that the last outcomes may take to be committed after the grace time."""


class Worker:
    """Runs the stages of pipelines until `stop`. Any number of workers share the work.

    `stages` limits it to some ("enrich" or "posts.enrich"; default: all). `concurrency` is how many attempts run at
    once for each stage in this process; a stage's own `concurrency` holds across all workers. `lease` (seconds) is how
    long a frozen or cut-off process keeps its jobs; a killed one loses them in about a second. `grace` (seconds) is how
    long running handlers may take after `stop`. `listen_dsn` is a direct DSN when `dsn` goes through a pooler. `drain`
    ends the run when nothing is due. `notify=False` polls only. `counts` says what has become of the attempts,
    `interrupted` how many handlers were still running at the end of the grace time, and `left` names those that run on
    after `run` has returned, as a thread can't be interrupted, and a coroutine may swallow its cancellation.

    While a handler blocks the event loop, the lease is kept for the longest timeout of what runs, plus a lease. Then
    `on_standstill`, if given, is called in a thread with the reason: it may end the process. The jobs were released.
    """

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
        # A worker of some stages leaves schedules to those that run all of them.
        self._schedules = [each for p in self._pipelines for each in p.schedules.values() if stages is None]
        self._dsn, self._listen_dsn, self._pooled = dsn, listen_dsn or dsn, listen_dsn not in (None, "", dsn)
        self._lease, self._grace, self._drain, self._notify = lease, grace, drain, notify
        self._retention = retention or Retention()
        self._on_standstill = on_standstill
        self._service = Service("Worker")
        self.counts, self.interrupted = Counts(), 0
        self.left: list[str] = []

    async def run(self) -> None:
        """Works until `stop`, or, with `drain`, until nothing is due.

        SchemaError or NotDeployed at once if the database isn't ready for this code. After that, nothing that data or a
        restart of Postgres does ends it. WorkerBroken when handlers that don't end have taken all slots of a stage.
        Cancelled, it cancels its handlers, and releases their jobs.
        """
        shift = _Shift(self)
        try:
            await self._service.run(shift.run, *shift.closing)
        finally:
            self.left = shift.left()
            if self.left:
                log.error("still running, though the worker has stopped: %s", ", ".join(self.left))

    def stop(self) -> None:
        """Stops: jobs that are claimed but not started go back at once, running ones get `grace` seconds.

        Called a second time, it stops at once. From another thread: `loop.call_soon_threadsafe(worker.stop)`.
        """
        self._service.stop()

    def _link(self, step: str) -> Link:
        return Link(self._dsn, step, pooled=self._pooled, settings=PLANNING)


class _Shift:
    """One run of a worker: its steps, each given the jobs in flight and a connection of its own."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._service = worker, worker._service
        dsn, pooled = worker._dsn, worker._pooled
        claims, commits = worker._link("claim"), [worker._link("commit") for _ in range(COMMITS)]
        reconciling = Link(dsn, "reconcile", pooled=pooled)
        self._inflight = inflight = InFlight(worker._lanes, worker.counts, draining=worker._drain)
        self._releaser = Releaser(commits[0], inflight)
        self._ready = Readiness(worker._pipelines, worker._lanes, worker._retention, claims, dsn)
        lease = Lease(worker._listen_dsn, inflight, seconds=worker._lease, listen=worker._notify)
        self._claimer = Claimer(claims, lease, inflight, self._releaser)
        checkpoints = Checkpoints(worker._link("checkpoint"))
        self._attempts = Attempts(dsn, inflight, self._releaser, checkpoints, pooled=pooled)
        committer = Committer(commits, worker._link("commit"), inflight, self._releaser)
        self._maintenance = Maintenance(dsn, inflight, worker._retention, lease=worker._lease, pooled=pooled)
        self._scheduler = Scheduler(dsn, worker._schedules, pooled=pooled)
        standstill = Standstill(
            dsn, lease, inflight, self._attempts, seconds=worker._lease, give_up=worker._on_standstill,
            timeout=lambda: max(inflight.lanes.timeout(), self._scheduler.timeout()),
        )  # fmt: skip
        self._beside = [
            standstill.run, lease.run, lease.watch, self._maintenance.run, committer.run, committer.run_held_up,
            self._attempts.watch, checkpoints.run, lambda: self._claimer.reconcile(reconciling),
            *([] if worker._drain else [self._scheduler.run]),
        ]  # fmt: skip
        self.closing = [
            self._release_all, lease.leave, claims.close, *(link.close for link in commits), committer.close,
            reconciling.close, self._maintenance.close, self._attempts.close, self._scheduler.close, checkpoints.close,
        ]  # fmt: skip

    async def run(self) -> None:
        await self._ready.wait(self._service)
        if self._service.stopping:
            return
        await self._attempts.open()
        await side_by_side(self._work_and_wind_down(), *(loop() for loop in self._beside))

    def left(self) -> list[str]:
        """Returns the names of the handlers that are still running."""
        return [*self._attempts.left(), *self._scheduler.left()]

    async def _work_and_wind_down(self) -> None:
        try:
            await self._service.until_stop(side_by_side(self._work(), self._attempts.broken()))
        except WorkerBroken as error:
            log.error("%s", error)
            await self._wind_down(within=self._worker._grace)
            raise
        await self._wind_down()

    async def _work(self) -> None:
        inflight, claimer, attempts = self._inflight, self._claimer, self._attempts
        while True:
            lanes = await inflight.room()  # 1 where there is room
            more = await claimer.turn(lanes)  # 2 claim
            for lane, _ in lanes:  # 3 start; what ends goes to the committer by itself
                attempts.start(lane)
            for lane in await claimer.store_in_progress(lanes):
                attempts.start(lane)
            if self._worker._drain and not more and await self._drained():
                return
            await claimer.rest()  # 4 until woken, there is room, or the poll delay is over

    async def _drained(self) -> bool:
        """Whether nothing is due: not here, not scheduled, and not held by a worker that has died."""
        if not self._inflight.drained():
            return False
        with suppress(psycopg.Error, OSError):
            await self._maintenance.tick(everything=True)
            if await self._scheduler.run_due():
                self._inflight.wake()
            return self._inflight.drained() and not self._maintenance.suspects
        return False

    async def _wind_down(self, within: float | None = None) -> None:
        """Ends what is at work within the grace time after a stop, or `within` so many seconds."""
        self._attempts.stop_starting()
        if waiting := self._inflight.drop_waiting():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._releaser.release(waiting, started=False), RELEASE_WITHIN)
            log.info("released %s jobs that had not started", len(waiting))
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._service.until_stop(self._inflight.quiet(), grace=self._worker._grace)
        if interrupted := self._inflight.interrupt("the worker has stopped"):
            self._worker.interrupted = len(interrupted)
            log.warning("interrupted %s handlers that were still running; their jobs run again", len(interrupted))
            await self._attempts.ended(CANCEL_WITHIN)
            with suppress(Exception):
                await asyncio.wait_for(self._releaser.release(interrupted), RELEASE_WITHIN)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._inflight.quiet(), COMMIT_WITHIN)
        if held_up := self._inflight.drop_held_up():
            log.warning("%s outcomes wait for rows that other sessions hold; their jobs run again", len(held_up))
            with suppress(Exception):
                await asyncio.wait_for(self._releaser.release(held_up), RELEASE_WITHIN)

    async def _release_all(self) -> None:
        """Cancels what runs and releases what is held; there is none unless the run has failed or was cancelled."""
        self._attempts.stop_starting()
        inflight = self._inflight
        held = [*inflight.drop_waiting(), *inflight.interrupt("the worker has ended"), *inflight.drop_held_up()]
        await self._attempts.ended(CANCEL_WITHIN)
        if held:
            await self._releaser.release(held)
            log.warning("released %s jobs, as the worker has ended; they run again", len(held))
