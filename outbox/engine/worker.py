"""The worker: composes the steps. Claim what there is room for, handle, commit in batches, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg.pq import PGconn, Ping

from .. import service
from ..database import migrations
from ..database.dsn import engine_conninfo
from ..database.link import PLANNING, Link, temporary
from ..definition import deploy
from ..definition.pipeline import Pipeline
from ..errors import DefinitionError, OutboxError
from ..texts import shown
from .attempt import Attempts
from .checkpoint import Checkpoints
from .claimer import Claimer
from .committer import Committer, Counts
from .job import fail
from .lane import Lanes
from .lease import Keeper
from .maintenance import Maintenance
from .retention import Retention
from .scheduler import Scheduler

log = logging.getLogger("outbox.worker")

COMMITS = 3
"""Batches that are committed at once: with one alone, Postgres idles while Python works, and while the disk does."""


class Worker:
    """Runs the stages of pipelines until `stop`. Any number of workers share the work.

    `stages` limits it to some ("enrich" or "posts.enrich"; default: all). `concurrency` bounds attempts at once
    per stage in this process; a stage's own counts over all. `lease` (seconds) is how long a frozen or cut-off
    process keeps its jobs; a killed one loses them in about a second. `grace` (seconds) is how long running
    handlers may take after `stop`. `listen_dsn` is a direct DSN when `dsn` goes through a pooler. `drain` ends the
    run when nothing
    is due. `notify=False` polls only. `counts` says what has become of the attempts, `interrupted` how many handlers
    were still running at the end.
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
    ) -> None:
        for name, value, low, high in (
            ("lease", lease, 0.5, 86_400),
            ("grace", grace, 0, 86_400),
            ("concurrency", concurrency or 1, 1, 10_000),
        ):
            if not isinstance(value, int | float) or not low <= value <= high:
                raise DefinitionError(f"{name}: {shown(value)} is not a number from {low:g} to {high:,}")
        self._pipelines = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
        for pipeline in self._pipelines:
            if not isinstance(pipeline, Pipeline):
                raise DefinitionError(f"pipelines: {shown(pipeline)} is no Pipeline")
        self._pipelines += [reaction for pipeline in self._pipelines for reaction in pipeline.reactions.values()]
        self._lanes = Lanes.of(self._pipelines, stages, concurrency)
        # A worker of some stages leaves the clock to those that run all of them.
        clocks = [pipeline.schedules for pipeline in self._pipelines if stages is None]
        self._schedules = [schedule for schedules in clocks for schedule in schedules.values()]
        self._dsn, self._listen_dsn = dsn, listen_dsn or dsn
        self._pooled = self._listen_dsn != dsn
        self._lease, self._grace, self._drain, self._notify = lease, grace, drain, notify
        self._retention = retention or Retention()
        self._pid = os.getpid()
        self._stops = 0
        self.counts = Counts()
        self.interrupted = 0

    async def run(self) -> None:
        """Work until `stop`, or, with `drain`, until nothing is due.

        SchemaError or NotDeployed at once if the database isn't ready for this code. After that, nothing that
        a handler, data or a restart of Postgres does ends it.
        """
        if os.getpid() != self._pid:
            raise OutboxError("this Worker was made before a fork; make it in the process that runs it")
        self._compose()
        await self._wait_for_database()
        await self._attempts.open()
        reconciling = Link(self._dsn, "reconcile", pooled=self._pooled)
        claiming = asyncio.create_task(self._claimer.run(self._drained if self._drain else None))
        others = [
            asyncio.create_task(loop)
            for loop in (
                self._keeper.run(),
                self._maintenance.run(),
                self._committer.run(),
                self._attempts.watch(),
                self._checkpoints.run(),
                self._claimer.reconcile(reconciling),
                self._watch_lease(),
                *([] if self._drain else [self._scheduler.run()]),
            )
        ]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([claiming, stopping, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in (claiming, *others):
                if task.done():
                    task.result()  # a loop ends only by a defect of ours (or, claiming, drained): say so
            await service.cancel(claiming)
            await self._wind_down()
        finally:
            await service.cancel(stopping, claiming, *others)
            for closing in (
                self._keeper.leave(), self._claims.close(), *(link.close() for link in self._commits),
                reconciling.close(), self._maintenance.close(), self._attempts.close(), self._scheduler.close(),
                self._checkpoints.close(),
            ):  # fmt: skip
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(closing, 5)

    def stop(self) -> None:
        """Stop: jobs that are claimed but not started go back at once, running ones get `grace` seconds.

        Called a second time, it stops at once. From another thread: `loop.call_soon_threadsafe(worker.stop)`.
        """
        self._stops += 1
        if hasattr(self, "_stopping"):
            self._stopping.set()

    async def _wait_for_database(self) -> None:
        """Check that schema and pipelines are there; a server that restarts meanwhile is waited for."""
        self._answered = False
        while not self._stopping.is_set():
            try:
                return await asyncio.to_thread(self._require_database)
            except psycopg.Error as error:
                # A DSN that leads nowhere is the user's to correct, now. One that did lead somewhere is not.
                starting = PGconn.ping(self._dsn.encode()) == Ping.REJECT
                if not (temporary(error) and (self._answered or starting)):
                    raise
                await self._claims.pause(error)

    def _require_database(self) -> None:
        with psycopg.connect(engine_conninfo(self._dsn, "check"), autocommit=True) as conn:
            self._answered = True
            migrations.require(conn)
            self._retention.require(conn)
            for pipeline in self._pipelines:
                stages = [name for owner, name in self._lanes if owner == pipeline.name]
                if stages:
                    deploy.require(conn, pipeline, stages)

    def _link(self, step: str) -> Link:
        # With a pooler in between, settings of a session would leak into other clients' sessions.
        return Link(self._dsn, step, pooled=self._pooled, settings={} if self._pooled else PLANNING)

    def _compose(self) -> None:
        self._claims = self._link("claim")
        self._commits = [self._link("commit") for _ in range(COMMITS)]
        self._stopping, self._quiet = asyncio.Event(), asyncio.Event()
        if self._stops:
            self._stopping.set()
        self._keeper = Keeper(
            self._listen_dsn,
            [lane.stage.queue for lane in self._lanes.values()],
            lease=self._lease,
            listen=self._notify,
            on_wake=lambda: self._claimer.wake(),
            on_lost=self._lose,
        )
        self._maintenance = Maintenance(
            self._dsn,
            pooled=self._pooled,
            retention=self._retention,
            lease=self._lease,
            idle=lambda: list(self._lanes) if self._claimer.idle else (),
            on_ready=lambda: self._claimer.wake(),
        )
        self._committer = Committer(
            self._commits,
            self.counts,
            busy=lambda: any(lane.running for lane in self._lanes.values()),
            on_next=self._reached,
            on_delay=self._maintenance.due_in,
            on_committed=self._committed,
            on_again=lambda: self._claimer.wake(),
        )
        self._scheduler = Scheduler(self._dsn, self._schedules, pooled=self._pooled)
        self._checkpoints = Checkpoints(self._link("checkpoint"))
        self._attempts = Attempts(
            self._dsn, self._lanes, self._committer, self._checkpoints, pooled=self._pooled, on_ended=self._ended
        )
        self._claimer = Claimer(
            self._claims,
            self._lanes,
            self._keeper,
            uncommitted=self._committer.__len__,
            careful=lambda: any(job.careful for job in self._committer.jobs),
            known=self._known,
            on_claimed=self._attempts.start,
            on_lost=self._lose,
            not_held=self._committer.not_held,
            on_refused=lambda job, error: self._committer.put(job, fail(job, error)),
        )

    # What the steps tell each other.

    def _reached(self, pipeline: str, status: str) -> None:
        if self._lanes.takes(pipeline, status):
            self._claimer.wake(back=False)

    def _committed(self) -> None:
        self._claimer.committed()
        self._ended()

    def _ended(self) -> None:
        self._claimer.room()
        self._quiet.set()
        # What has just ended may be due again at once, unseen by a claim that is under way: a drain asks once more.
        if self._drain and not self._busy():
            self._claimer.wake()

    def _known(self) -> list[str]:
        """The workflows whose jobs this process knows to hold."""
        running = [job for lane in self._lanes.values() for job in lane.running.values()]
        here = (*running, *self._lanes.waiting(), *self._committer.jobs, *self._attempts.late)
        return [job.workflow_id for job in here]

    def _busy(self) -> bool:
        return bool(len(self._committer) or self._lanes.running() or self._attempts.late)

    async def _drained(self) -> bool:
        """Whether nothing is due: not here, not scheduled, and not in the hands of a worker that has died."""
        if self._busy() or any(lane.waiting or not lane.complete for lane in self._lanes.values()):
            return False
        with contextlib.suppress(psycopg.Error, OSError):
            await self._maintenance.tick(everything=True)
            if await self._scheduler.run_due():
                self._claimer.wake()
            return not (self._claimer.woken or self._busy() or self._maintenance.suspects)
        return False

    # The end, and the lease.

    async def _wind_down(self) -> None:
        self._attempts.stop_starting()
        waiting = self._lanes.drop_waiting()
        if waiting:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._committer.give_back(waiting, begun=False), 10)
            log.info("gave back %s jobs that had not started", len(waiting))
        deadline = time.monotonic() + self._grace
        while self._busy() and self._stops < 2 and time.monotonic() < deadline:
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), 0.05)
        interrupted = self._lanes.running()
        self.interrupted = len(interrupted)
        if interrupted:
            log.warning("interrupted %s handlers that were still running; their jobs run again", len(interrupted))
            for job in interrupted:
                job.take_away("the worker has stopped")
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._committer.give_back(interrupted), 5)
        await self._committer.drained(1.0)

    def _lose(self, why: str) -> None:
        """Nothing that is claimed under the present id counts any more: drop and cancel it."""
        running, dropped = self._lanes.running(), self._lanes.drop_waiting()
        for job in running:
            job.take_away(why)
        self._claimer.forget()
        if running or dropped:
            self.counts.lost += len(running)
            log.warning(
                "LeaseLost: %s; %s running and %s waiting jobs are left to others",
                why,
                len(running),
                len(dropped),
            )

    async def _watch_lease(self) -> None:
        """Give up by this process's own clock when no beat was accepted for half the lease."""
        while True:
            await asyncio.sleep(min(0.2, self._lease / 10))
            if self._keeper.id and time.monotonic() - self._keeper.beaten > self._lease / 2:
                self._lose("no beat for half the lease")
                self._keeper.forget()
