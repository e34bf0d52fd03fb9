"""Keeps one stage's share of one process: the waiting and running jobs, their slots, and how many more to claim."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..definition.pipeline import Pipeline
from ..definition.stage import Stage
from ..errors import DefinitionError
from ..texts import shown
from .job import Job
from .pacing import LATE, is_late
from .scan_mark import ScanMark
from .sharing import Sharing

PREFETCH = 0.05
"""Seconds of work that a process claims ahead, measured by the rate at which the stage has ended jobs."""

MAX_CLAIM = 200
"""Most jobs of a stage in one claim. With larger claims, Postgres and Python wait for each other."""

RATE_EVERY = 0.1
"""Seconds over which the rate of ended jobs is averaged. In less time, one slow job would stop the prefetch."""

ASYNC_CONCURRENCY, SYNC_CONCURRENCY, TRANSACTION_CONCURRENCY, BATCH_CONCURRENCY = 100, 16, 10, 2
"""Default number of concurrent attempts. Coroutines are cheap; threads and connections are not."""


class Lane:
    """A stage's share of a process.

    `waiting`: claimed and not started. `running`: with a handler, keyed by identity, because a handler that goes on
    after its timeout may run beside the next attempt at the same job. `attempts`: running handlers, each with one job
    or a batch. `overdue`: those whose attempt no longer counts. `careful`: jobs here that may kill the process; it has
    one at a time.
    """

    def __init__(self, stage: Stage, concurrency: int) -> None:
        self.stage = stage
        self.paced = stage.limits is not None and stage.limits.paced
        self.concurrency = concurrency
        self.waiting: deque[Job] = deque()
        self.running: dict[int, Job] = {}
        self.attempts = self.overdue = 0
        self.careful = 0
        self.sharing = Sharing(stage.queue, stage.share) if stage.share else None
        self.sharing_too: Sequence[Lane] = ()  # the process's other lanes that share transactions
        self.scan = ScanMark()
        self.held_until = 0.0  # the stage's limits let nothing start before this, unless something changes
        self._eager = 1.0  # the part of a paced stage's room that is claimed
        self._rate = 0.0
        self._ended = 0
        self._since = time.monotonic()

    @property
    def slots(self) -> int:
        """How many jobs may be with handlers at once."""
        if self.sharing is not None:
            return self.sharing.slots(self.concurrency)
        return self.concurrency * (self.stage.batch or 1)

    @property
    def blocked(self) -> bool:
        """Whether every slot has a handler that goes on although its attempt no longer counts."""
        return self.overdue >= self.concurrency

    def room(self) -> int:
        """Returns how many more jobs to claim: the free slots and a few ahead, so that slow stages hoard no jobs."""
        if self.blocked:
            return 0
        ahead = min(MAX_CLAIM, int(self._rate * (LATE if self.paced else PREFETCH)))
        most = math.ceil((self.slots + ahead) * self._eager) if self.paced else self.slots + ahead
        return min(MAX_CLAIM, most - len(self.running) - len(self.waiting))

    def add(self, job: Job) -> None:
        """Adds a claimed job."""
        self.waiting.append(job)
        self.careful += job.careful

    def next(self) -> list[Job]:
        """Takes out the jobs for the next handler; none if no slot is free, or no job may start."""
        if self.attempts >= self.concurrency:
            return []
        most = self.stage.batch or 1
        if self.sharing is not None:
            most = self.sharing.size(self.attempts, beside=any(lane.attempts for lane in self.sharing_too))
        taken: list[Job] = []
        while self.waiting and len(taken) < most and self._may_start(self.waiting[0]):
            if taken and self._is_alone(self.waiting[0]):
                break
            taken.append(self.waiting.popleft())
            if self._is_alone(taken[0]):
                break
        return taken

    def _is_alone(self, job: Job) -> bool:
        """Returns whether a job's transaction is its own: it was rolled back, or others must not die with it."""
        return job.alone or (job.careful and self.sharing is not None)

    def _may_start(self, job: Job) -> bool:
        """Returns whether the start time has come, and the in-progress status, if there is one, is stored."""
        if job.starts and job.starts > time.monotonic():
            return False
        return not self.stage.running or job.status not in self.stage.on

    def leave(self, jobs: Sequence[Job]) -> None:
        """Frees the slot of a handler that has returned."""
        self.attempts -= 1
        for job in jobs:
            self.running.pop(id(job), None)
            self.careful -= job.careful and job not in self.waiting
        self._ended += len(jobs) if self.sharing is None else sum(job.begun for job in jobs)
        now = time.monotonic()
        if (passed := now - self._since) > RATE_EVERY:
            self._rate = 0.5 * self._rate + 0.5 * self._ended / passed
            self._ended, self._since = 0, now

    def again_alone(self, jobs: Sequence[Job]) -> None:
        """Puts jobs that were rolled back together first in the queue, each to run alone."""
        for job in reversed(jobs):
            if not job.lost:
                job.alone, job.starts = True, 0.0  # it has started on time once
                self.waiting.appendleft(job)

    def again(self, jobs: Sequence[Job]) -> None:
        """Puts jobs whose turn has not come first in the queue."""
        self.waiting.extendleft(job for job in reversed(jobs) if not job.lost)

    def remove(self, job: Job) -> bool:
        """Takes out a waiting job. Returns False if it no longer waits, because the lease was lost."""
        if job not in self.waiting:
            return False
        self.waiting.remove(job)
        self.careful -= job.careful
        return True

    def take_late(self) -> list[Job]:
        """Takes out the waiting jobs that have missed their start times."""
        late: list[Job] = []
        now = time.monotonic()
        while self.waiting and is_late(self.waiting[0].starts, now):
            late.append(self.waiting.popleft())
            self.careful -= late[-1].careful
        return late

    def drop_waiting(self) -> list[Job]:
        """Takes out all waiting jobs."""
        dropped = list(self.waiting)
        self.careful -= sum(job.careful for job in dropped)
        self.waiting.clear()
        return dropped

    def missed(self) -> None:
        """Claims less for a paced stage: the process has taken more jobs than it can start in time."""
        self._eager = max(0.02, self._eager / 2)

    def held_for(self, seconds: float | None) -> None:
        """Records in how many seconds a limited stage may have more jobs for this process (None: there are none)."""
        self._eager = min(1.0, self._eager * 1.1)
        self.scan.complete = seconds is None
        self.held_until = 0.0 if seconds is None else time.monotonic() + seconds


class Lanes(dict[tuple[str, str], Lane]):
    """The lanes of a worker by (pipeline, stage)."""

    @classmethod
    def of(
        cls,
        pipelines: Sequence[Pipeline[object]],
        names: Sequence[str] | None,
        concurrency: int | None,
        as_run: Callable[[Stage], Stage] = lambda stage: stage,
    ) -> Lanes:
        """Returns a lane for each chosen stage ("enrich" or "posts.enrich"; None: all), as this worker runs it.

        Raises DefinitionError if there is no such stage.
        """
        lanes = [Lane(as_run(stage), _concurrency(stage, concurrency)) for stage in _choose(pipelines, names)]
        sharing = [lane for lane in lanes if lane.sharing is not None]
        for lane in sharing:
            lane.sharing_too = [other for other in sharing if other is not lane]
        return cls(((lane.stage.pipeline, lane.stage.name), lane) for lane in lanes)

    def running(self) -> list[Job]:
        """Returns the jobs with handlers whose attempts still count."""
        return [job for lane in self.values() for job in lane.running.values() if not job.lost]

    def timeout(self) -> float:
        """Returns the longest timeout, in seconds, of the stages with running jobs."""
        return max((lane.stage.timeout for lane in self.values() if lane.running), default=0.0)

    def waiting(self) -> list[Job]:
        """Returns the claimed jobs that have not started."""
        return [job for lane in self.values() for job in lane.waiting]

    def takes(self, pipeline: str, status: str) -> bool:
        """Returns whether this worker has a stage that acts on this status."""
        return any(status in lane.stage.on and lane.stage.pipeline == pipeline for lane in self.values())

    def with_room(self) -> list[tuple[Lane, int]]:
        """Returns the lanes that may have more jobs, and how many. It leaves out lanes that their limits hold back."""
        now = time.monotonic()
        return [(lane, room) for lane in self.values() if lane.held_until <= now and (room := lane.room()) > 0]

    def held_for(self) -> float | None:
        """Returns the seconds until the limits let the first lane go on; None if they hold back no lane."""
        now = time.monotonic()
        return min((lane.held_until - now for lane in self.values() if lane.held_until > now), default=None)


def with_reactions(pipelines: Pipeline[Any] | Iterable[Pipeline[Any]]) -> list[Pipeline[Any]]:
    """Returns the pipelines that were given, and those of their reactions. DefinitionError if one isn't a Pipeline."""
    found = list(pipelines) if isinstance(pipelines, Iterable) else [pipelines]
    for pipeline in found:
        if not isinstance(pipeline, Pipeline):
            raise DefinitionError(f"pipelines: {shown(pipeline)} is not a Pipeline")
    return found + [reaction for pipeline in found for reaction in pipeline.reactions.values()]


def _choose(pipelines: Sequence[Pipeline[object]], names: Sequence[str] | None) -> list[Stage]:
    by_name: dict[str, Pipeline[object]] = {}
    for pipeline in pipelines:
        if by_name.setdefault(pipeline.name, pipeline) is not pipeline:
            raise DefinitionError(f"the application has two pipelines named {pipeline.name!r}: rename one of them")
    every = [stage for pipeline in pipelines for stage in pipeline.stages.values()]
    known = ", ".join(stage.queue for stage in every) or "none"
    for name in names or ():
        if not any(name in (stage.name, stage.queue) for stage in every):
            raise DefinitionError(f"unknown stage {name!r}; the application has: {known}")
    chosen = [stage for stage in every if names is None or stage.name in names or stage.queue in names]
    if not chosen and (names is not None or not any(pipeline.schedules for pipeline in pipelines)):
        raise DefinitionError("there is no stage to work on: give the worker a pipeline that has stages, or schedules")
    return chosen


def _concurrency(stage: Stage, chosen: int | None) -> int:
    """Returns how many attempts run at once in this process: at most the stage's limit across all workers."""
    total = stage.limits.concurrency if stage.limits else None
    here = chosen or (total if not stage.batch else None) or _default(stage)
    return here if total is None else min(here, total)


def _default(stage: Stage) -> int:
    if stage.batch:
        return BATCH_CONCURRENCY
    if stage.transaction:
        return TRANSACTION_CONCURRENCY
    return ASYNC_CONCURRENCY if stage.is_async else SYNC_CONCURRENCY
