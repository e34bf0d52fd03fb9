"""Releases or puts back jobs that this process can't or must not go on with. Their attempts aren't counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from ..database.link import Link
from ..errors import HandlerError
from ..texts import clean, printable
from . import commit, effects
from .handlers import named
from .inflight import InFlight
from .job import Failed, Job, Trouble, fail
from .lane import Lane

log = logging.getLogger("outbox.worker")

CHANGED = Trouble("its data was changed meanwhile")

HELD_UP = Trouble(
    "another session holds its workflow in an open transaction", first=0.5, next=0.5, longest=10.0, most=500
)
"""500 put-backs take more than an hour: enough time to notice a transaction that was left open."""

RECONNECT_AFTER = 0.2
"""Seconds before jobs are put back whose handler could not be called: there may be a thread or a database by then."""

MOST_NOT_STARTED = 30
"""How often in a row a job is put back whose handler could not be called: enough for an outage of half an hour."""


class Releaser:
    """Releases jobs, and repeats each statement until the database has answered."""

    def __init__(self, link: Link, inflight: InFlight) -> None:
        self._link = link
        self._inflight = inflight
        self._releasing: asyncio.Task[None] | None = None

    async def release(self, jobs: Sequence[Job], *, started: bool = True) -> set[str]:
        """Releases jobs, and their start times if none has started; returns the workflows that were still held."""
        released: set[str] = set()
        for owner in {job.owner for job in jobs}:
            mine = [job for job in jobs if job.owner == owner]
            released |= {row[0] for row in await self._link.repeat(*commit.release(mine))}
        for stage in {job.stage.queue for job in jobs if job.start_time and not started}:
            unused = [job for job in jobs if job.start_time and job.stage.queue == stage]
            await self._link.repeat(*commit.return_start_times(unused))
        return released

    async def committed(self, jobs: Sequence[Job]) -> set[str]:
        """Returns which of these jobs of one owner have committed, according to the history."""
        return {row[0] for row in await self._link.repeat(*commit.finished_by(jobs))}

    async def not_held(self, jobs: Sequence[Job]) -> None:
        """Ends jobs whose commit was refused. Their data was changed (they run again), or they were taken away."""
        await self.put_back(jobs, CHANGED)

    async def put_back(self, jobs: Sequence[Job], trouble: Trouble) -> None:
        """Puts jobs back, or fails those that were put back too often. Jobs that are no longer held were taken away."""
        if trouble.asked and await self._ask(jobs[0], trouble):
            return
        answers: dict[str, tuple[float | None, bool]] = {}
        for owner in {job.owner for job in jobs}:
            mine = [job for job in jobs if job.owner == owner]
            rows = await self._link.repeat(*commit.put_back(mine, trouble))
            answers |= {workflow: (delay, unrouted) for workflow, delay, unrouted in rows}
        for job in jobs:
            where = f"{job.stage.queue} {printable(job.entity_id)}"
            delay, unrouted = answers.get(job.workflow_id, (None, False))
            if job.workflow_id not in answers:
                self._inflight.counts.lost += 1
                log.warning("%s: LeaseLost, nothing of it was written", where)
            elif unrouted:
                self._inflight.end(job, fail(job, HandlerError(trouble.reason)))
            elif delay is None:
                self._inflight.end(job, _failed(job, trouble))
            elif delay <= 0:
                log.info("%s: %s; it runs again", where, printable(trouble.reason))
                self._inflight.wakeups.wake()
            else:
                log.warning("%s: %s; it runs again in %.1f s", where, printable(trouble.reason), delay)
                self._inflight.wakeups.due_in(delay)

    async def _ask(self, job: Job, trouble: Trouble) -> bool:
        """Asks people about effects of an attempt, and parks its job. Returns whether they are asked."""
        ((asked,),) = await self._link.repeat(*effects.ask(job, trouble))
        if asked:
            log.warning("%s %s: %s", job.stage.queue, printable(job.entity_id), printable(trouble.reason))
        return bool(asked)

    async def not_started(self, jobs: Sequence[Job], why: str) -> None:
        """Puts back jobs whose handler could not be called. Their attempts aren't counted."""
        log.warning("%s: %s; %s not started", jobs[0].stage.queue, why, named(jobs))
        await asyncio.sleep(RECONNECT_AFTER)
        if held := [job for job in jobs if job.lost is None]:
            await self.put_back(held, Trouble(why, most=MOST_NOT_STARTED))

    def missed(self, lane: Lane, jobs: Sequence[Job]) -> None:
        """Hands jobs that have missed their start time here to other workers, all in one go."""
        if held := [job for job in jobs if job.lost is None]:
            self._inflight.missed(lane, held)
            self._release_late()

    def not_begun(self, lane: Lane) -> None:
        """Releases the jobs that wait behind handlers that don't end. Their attempts aren't counted."""
        log.info("%s: released %s jobs that waited for a slot", lane.stage.queue, len(lane.waiting))
        self._inflight.not_begun(lane)
        self._release_late()

    def _release_late(self) -> None:
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.get_running_loop().create_task(self.late())

    async def late(self) -> None:
        """Releases all jobs that have missed their start times here. They get new ones, and any worker starts them."""
        while late := self._inflight.late():
            await self.release(late, started=False)
            log.debug("%s: released %s jobs that have missed their start times", late[0].stage.queue, len(late))
            self._inflight.released(late)
            self._inflight.wakeups.wake()

    async def is_unchanged(self, job: Job) -> bool:
        """Returns whether the workflow is still as it was when it was claimed."""
        question = commit.SQL["workflow_unchanged"], {"id": job.workflow_id, "version": job.version}
        return bool(await self._link.repeat(*question))


def _failed(job: Job, trouble: Trouble) -> Failed:
    """Returns the failure of an attempt that was put back too often. It is final if no worker can run the job."""
    reason = f"{trouble.reason}, {trouble.most} times in a row"
    return Failed(clean(reason), None) if trouble.avoid else replace(fail(job, HandlerError(reason)), in_row=True)
