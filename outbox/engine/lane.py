"""One stage in one process: what runs, what waits claimed, how much more to claim, and from where."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence

from ..database.budget import Budget
from ..definition.pipeline import Pipeline
from ..definition.stage import Stage
from ..errors import DefinitionError
from .job import Job
from .pacing import LATE, is_late

FULL_SCAN = 1.0
"""Seconds between two scans from zero while there is plenty. They find rows that committed late or came back."""

ROW_COST = 20e-6
"""Seconds of a claim's time that each of its rows accounts for; the rest is the scan's."""

PREFETCH = 0.05
"""Seconds of work that may wait claimed in this process, by the rate at which the stage has finished jobs."""

MAX_BATCH = 200
"""Jobs of a stage that a claim takes. Of larger ones, Postgres and Python wait for each other."""


ASYNC_CONCURRENCY, SYNC_CONCURRENCY, TRANSACTION_CONCURRENCY, BATCH_CONCURRENCY = 100, 16, 10, 2


class Lane:
    """A stage's share of this process."""

    def __init__(self, stage: Stage, concurrency: int) -> None:
        self.stage = stage
        self.paced = stage.limits is not None and stage.limits.paced
        self.concurrency = concurrency
        self.waiting: deque[Job] = deque()
        self.running: dict[str, Job] = {}
        self.attempts = 0  # handlers at work; each has one job, or a batch of them
        self.careful = 0  # jobs that may kill this process: one at a time, over all its lanes
        self.complete = False  # the last scan began at zero and found less than was asked for
        self.held_until = 0.0  # the stage's limits let nothing begin before, unless something happens
        self.timer: asyncio.TimerHandle | None = None
        self._high = 0  # the highest id that was found
        self._plenty = False
        self._eager = 1.0  # of a paced stage's room, the part that is claimed for
        self._full_scans = Budget()
        self._rate = 0.0
        self._finished = 0
        self._since = time.monotonic()

    def room(self) -> int:
        """How many more jobs to claim: free slots and a little ahead, so that slow handlers hoard nothing."""
        ahead = min(MAX_BATCH, int(self._rate * (LATE if self.paced else PREFETCH)))
        most = math.ceil((self.slots + ahead) * self._eager) if self.paced else self.slots + ahead
        return min(MAX_BATCH, most - len(self.running) - len(self.waiting))

    def missed(self) -> None:
        """Take note that jobs have missed their moments here: it took more of them than it can begin in time."""
        self._eager = max(0.02, self._eager / 2)

    @property
    def slots(self) -> int:
        """How many jobs may be with handlers at once."""
        return self.concurrency * (self.stage.batch or 1)

    def next(self) -> list[Job]:
        """Take what the next handler gets; nothing if there is no free slot, or nothing that may begin."""
        if self.attempts >= self.concurrency:
            return []
        taken: list[Job] = []
        while self.waiting and len(taken) < (self.stage.batch or 1) and self._may_begin(self.waiting[0]):
            if taken and self.waiting[0].alone:
                break
            taken.append(self.waiting.popleft())
            if taken[0].alone:
                break
        return taken

    def _may_begin(self, job: Job) -> bool:
        """Whether its moment has come, and its in-progress status is stored, where it has one."""
        if job.begins and job.begins > time.monotonic():
            return False
        return not self.stage.running or job.status != self.stage.on

    def take_late(self) -> list[Job]:
        """Take out what waits and has missed its moment."""
        late: list[Job] = []
        now = time.monotonic()
        while self.waiting and is_late(self.waiting[0].begins, now):
            late.append(self.waiting.popleft())
            self.careful -= late[-1].careful
        return late

    def again_alone(self, jobs: Sequence[Job]) -> None:
        """Put back what was rolled back together, to begin before anything else, each without the others."""
        for job in reversed(jobs):
            if not job.lost:
                job.alone, job.begins = True, 0.0  # it has begun
                self.waiting.appendleft(job)

    def finished(self, jobs: int) -> None:
        """Count finished jobs for the rate."""
        self._finished += jobs
        now = time.monotonic()
        if (passed := now - self._since) > 0.1:
            self._rate = 0.5 * self._rate + 0.5 * self._finished / passed
            self._finished, self._since = 0, now

    def scan_from(self, now: float) -> int:
        """Return the id to scan from: zero whenever that is cheap, else where the scans before have ended."""
        if not self._full_scans.allows(now, least=FULL_SCAN if self._plenty else 0.0):
            return self._high
        self._full_scans.begin(now)
        return 0

    def scan_all(self) -> None:
        """Scan from zero the next time: something may have come back with an old id."""
        self._full_scans.waive()

    def held_for(self, seconds: float | None) -> None:
        """Take note in how many seconds a limited stage may have more for this process (None: nothing waits)."""
        self._eager = min(1.0, self._eager * 1.1)
        self.complete = seconds is None
        self.held_until = 0.0 if seconds is None else time.monotonic() + seconds

    def scanned(self, start: int, asked: int, ids: Sequence[int], cost: float) -> None:
        """Take note of what a scan has found, and of the seconds that it took beside what it found."""
        self._plenty = len(ids) >= asked
        self._high = max(self._high, *ids) if ids else self._high
        self.complete = start == 0 and not self._plenty
        if start == 0:
            self._full_scans.spent(cost)

    def remove(self, job: Job) -> bool:
        """Forget a job that waits. False: it does not wait any more, as the lease was lost meanwhile."""
        if job not in self.waiting:
            return False
        self.waiting.remove(job)
        self.careful -= job.careful
        return True

    def drop_waiting(self) -> list[Job]:
        """Empty the queue of claimed jobs that have not started, and return them."""
        dropped = list(self.waiting)
        self.careful -= sum(job.careful for job in dropped)
        self.waiting.clear()
        return dropped


class Lanes(dict[tuple[str, str], Lane]):
    """The lanes of a worker by (pipeline, stage)."""

    @classmethod
    def of(cls, pipelines: Sequence[Pipeline[object]], names: Sequence[str] | None, concurrency: int | None) -> Lanes:
        """Return a lane for each chosen stage ("enrich" or "posts.enrich"; None: all). DefinitionError if unknown."""
        return cls(
            (
                (stage.pipeline.name, stage.name),
                Lane(stage, _at_once(stage, concurrency)),
            )
            for stage in _choose(pipelines, names)
        )

    def running(self) -> list[Job]:
        """Return the attempts that still count."""
        return [job for lane in self.values() for job in lane.running.values() if not job.lost]

    def waiting(self) -> list[Job]:
        """Return the claimed jobs that have not started."""
        return [job for lane in self.values() for job in lane.waiting]

    def drop_waiting(self) -> list[Job]:
        return [job for lane in self.values() for job in lane.drop_waiting()]

    def takes(self, pipeline: str, status: str) -> bool:
        """Whether a workflow that comes to this status is work for this worker."""
        return any(lane.stage.on == status and lane.stage.pipeline.name == pipeline for lane in self.values())


def _choose(pipelines: Iterable[Pipeline[object]], names: Sequence[str] | None) -> list[Stage]:
    every = [stage for pipeline in pipelines for stage in pipeline.stages.values()]
    known = ", ".join(stage.queue for stage in every) or "none"
    for name in names or ():
        if not any(name in (stage.name, stage.queue) for stage in every):
            raise DefinitionError(f"unknown stage {name!r}; the application has: {known}")
    chosen = [stage for stage in every if names is None or stage.name in names or stage.queue in names]
    if not chosen:
        raise DefinitionError("there is no stage to work on: give the worker a pipeline that has stages")
    return chosen


def _at_once(stage: Stage, chosen: int | None) -> int:
    """How many attempts run at once in this process: no more than the stage may have in all."""
    total = stage.limits.concurrency if stage.limits else None
    here = chosen or (total if not stage.batch else None) or _default(stage)
    return here if total is None else min(here, total)


def _default(stage: Stage) -> int:
    if stage.batch:
        return BATCH_CONCURRENCY
    if stage.transaction:
        return TRANSACTION_CONCURRENCY
    return ASYNC_CONCURRENCY if stage.is_async else SYNC_CONCURRENCY
