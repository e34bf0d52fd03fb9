"""Holds the jobs that a process has in flight: where each one is, its moves, and the questions that the steps ask.

    claimed -> waiting -> running -> ended -> committing -> gone
                  |          |-> waiting, alone      (rolled back together with others)
                  |          '-> gone                (committed in a transaction of its own)
                  |-> late -> gone                   (its start time has passed: released)
                  '-> gone                           (released, refused, or lost with the lease)

    committing -> held up -> committing again        (another session holds what its commit needs)

A handler that exceeds its job's timeout keeps its slot in the lane; the job has ended without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..texts import printable
from .batch import Batch
from .job import Failed, Finished, Job
from .lane import Lane, Lanes
from .wakeups import Wakeups

log = logging.getLogger("outbox.worker")

MOST_UNCOMMITTED = 2_000
"""Most outcomes that may wait for their commit before claims stop: a slow disk must not fill this process's memory."""

ROOM_WAIT = 1.0
"""Seconds after which a claim is made even if most slots are taken, because another lane may have jobs."""

ROOM_LINGER = 0.002
"""Seconds that a claim waits for more room once there is some, so that it is worth its round trip."""

CANCEL_IN = 0.1
"""Seconds after the lease was lost in which handlers may end by themselves. A server that hangs is let go of then, and
what waits for it fails. Cancelled before, psycopg would ask the same server to cancel, and wait for ten seconds."""

MOST_HELD_UP = 10_000
"""Most outcomes that may be held up before claims stop: one session can lock all rows of a pipeline."""

QUIET_POLL = 0.05
"""Seconds between two checks of what is in flight: a handler that is cancelled too late sends no signal."""


@dataclass(slots=True)
class Counts:
    """Counts how a worker's attempts have ended."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    lost: int = 0


class InFlight:
    """Owns the jobs of a process.

    `draining`: the worker ends when nothing is due. `something_ended` and `something_held_up` wake the committer, and
    `something_started` the loop that watches timeouts. `wakeups` wakes the claimer.
    """

    def __init__(self, lanes: Lanes, counts: Counts | None = None, *, draining: bool = False) -> None:
        self.lanes = lanes
        self.counts = counts or Counts()
        self.wakeups = Wakeups(lanes)
        self.something_started, self.something_ended, self.something_held_up = (asyncio.Event() for _ in range(3))
        self._draining = draining
        self._quiet = asyncio.Event()
        self._ended = Batch()
        self._committing: list[Batch] = []
        self._committing_again: list[Batch] = []
        self._held_up = Batch()
        self._late: list[Job] = []

    # Moves.

    def start(self, lane: Lane) -> list[Job]:
        """Moves the next handler's jobs from waiting to running and returns them; returns none if none may start."""
        if jobs := lane.next():
            lane.attempts += 1
            for job in jobs:
                lane.running[id(job)] = job
            self.something_started.set()
        return jobs

    def end(self, job: Job, outcome: Finished | Failed) -> None:
        """Hands a job and its outcome to the committer, unless the attempt no longer counts."""
        if job.lost is not None:
            log.info("%s %s: LeaseLost, %s", job.stage.queue, printable(job.entity_id), job.lost)
        elif isinstance(outcome, Finished):
            self._ended.finished.append((job, outcome))
            self.something_ended.set()
        else:
            self._ended.failed.append((job, outcome))
            self.something_ended.set()

    def handler_returned(self) -> None:
        """Tells the claimer that there is room, after a slot was freed and no waiting job has taken it."""
        self._has_room()

    def take_batch(self) -> Batch:
        """Moves the next batch from ended to committing."""
        batch = self._ended.take()
        self._committing.append(batch)
        return batch

    def hold_up(self, finished: Sequence[tuple[Job, Finished]] = (), failed: Sequence[tuple[Job, Failed]] = ()) -> None:
        """Moves outcomes to the held-up ones: another session holds rows that they need."""
        self._held_up.finished += finished
        self._held_up.failed += failed
        self.something_held_up.set()

    def take_held_up(self) -> Batch:
        """Moves a batch of held-up outcomes to committing."""
        batch = self._held_up.take()
        self._committing_again.append(batch)
        if not self._held_up:
            self.something_held_up.clear()
        return batch

    def take_first_held_up(self) -> Batch:
        """Moves the first held-up outcome to committing."""
        held_up = self._held_up
        batch = Batch(held_up.finished[:1]) if held_up.finished else Batch([], held_up.failed[:1])
        self._held_up = Batch(held_up.finished[len(batch.finished) :], held_up.failed[len(batch.failed) :])
        self._committing_again.append(batch)
        return batch

    def not_tried(self, finished: Sequence[tuple[Job, Finished]]) -> None:
        """Moves outcomes that were not tried back to the held-up ones, before those that were."""
        self._held_up.finished[:0] = finished

    def drop_held_up(self) -> list[Job]:
        """Takes out all jobs that are held up."""
        jobs, self._held_up = self._held_up.jobs, Batch()
        return jobs

    def committed_again(self, batch: Batch) -> None:
        """Forgets a batch of held-up outcomes. Those that are still held up have already been moved back."""
        self._committing_again = [other for other in self._committing_again if other is not batch]
        self._limits_released()

    def committed(self, batch: Batch) -> None:
        """Forgets a batch whose commits were answered, whatever the answers were."""
        self._committing = [other for other in self._committing if other is not batch]
        self.something_ended.set()
        self._limits_released()

    def done(self, finished: Sequence[tuple[Job, Finished]], count: int) -> None:
        """Counts committed outcomes, and triggers the claims and the maintenance that they call for."""
        self.counts.done += count
        for pipeline, status in {(job.stage.pipeline, outcome.status) for job, outcome in finished}:
            if self.lanes.takes(pipeline, status):
                self.wakeups.wake_for_new()
        for _, outcome in finished:
            if outcome.wait is not None:
                for seconds in (outcome.wait.get("after"), outcome.wait.get("within")):
                    if seconds is not None:
                        self.wakeups.due_in(seconds)

    def committed_alone(self, finished: Sequence[tuple[Job, Finished]]) -> None:
        """Counts jobs that were committed in transactions of their own."""
        self.done(finished, len(finished))
        self._limits_released()

    def missed(self, lane: Lane, jobs: Sequence[Job]) -> None:
        """Moves jobs that have missed their start time to the late ones, which are released together."""
        if not self._late:
            lane.missed()
        self._late += jobs

    def not_begun(self, lane: Lane) -> None:
        """Moves a lane's waiting jobs to the late ones, because no handler there will free its slot soon."""
        self._late += lane.drop_waiting()

    def late(self) -> list[Job]:
        """Returns the late jobs of one stage, to be released."""
        return [job for job in self._late if job.stage is self._late[0].stage]

    def released(self, jobs: Sequence[Job]) -> None:
        """Forgets late jobs that have been released."""
        self._late = [job for job in self._late if job not in jobs]
        self._has_room()

    def drop_waiting(self) -> list[Job]:
        """Takes out all waiting jobs."""
        return [job for lane in self.lanes.values() for job in lane.drop_waiting()]

    def interrupt(self, why: str, *, cancel_in: float = 0.0) -> list[Job]:
        """Takes all running jobs away from their handlers; returns them."""
        running = self.lanes.running()
        for job in running:
            job.take_away(why, cancel_in=cancel_in)
        return running

    def lose(self, why: str) -> None:
        """Drops and cancels all that was claimed: nothing under the worker's present id counts any more."""
        running, dropped = self.interrupt(why, cancel_in=CANCEL_IN), self.drop_waiting()
        self.wakeups.idle = False  # the worker's next row does not say that it is
        if running or dropped:
            self.counts.lost += len(running)
            log.warning(
                "LeaseLost: %s; %s running and %s waiting jobs are left to others", why, len(running), len(dropped)
            )

    def lose_some(self, jobs: Sequence[Job], why: str) -> None:
        """Drops and cancels those of these jobs that wait or run, with what runs in the same batch."""
        dropped = [job for lane in self.lanes.values() for job in jobs if lane.remove(job)]
        running = [job for job in self.lanes.running() if any(job is one for one in jobs)]
        tasks = [job.task for job in running if job.task is not None]
        running = [job for job in self.lanes.running() if job.task in tasks or any(job is one for one in running)]
        for job in running:
            job.take_away(why)
        if running or dropped:
            self.counts.lost += len(running)
            log.warning(
                "LeaseLost: %s; %s running and %s waiting jobs are left to others", why, len(running), len(dropped)
            )

    # Questions.

    def claimed(self, owner: int) -> list[Job]:
        """Returns the jobs that wait or run, claimed under a worker's id."""
        return [job for job in (*self.lanes.waiting(), *self.lanes.running()) if job.owner == owner]

    def held(self) -> list[str]:
        """Returns the workflows whose jobs this process knows that it holds."""
        counted = (*self.lanes.waiting(), *self.lanes.running(), *self._late, *self._uncommitted())
        return [job.workflow_id for job in counted]

    def busy(self) -> bool:
        """Returns whether an attempt is running, or waits to be committed or released."""
        return bool(self.uncommitted or self.held_up or self._late or self.lanes.running())

    def drained(self) -> bool:
        """Returns whether nothing is in flight, the last scans have found nothing, and no job has come since."""
        complete = all(lane.scan.complete and not lane.waiting for lane in self.lanes.values())
        return complete and not self.busy() and not self.wakeups.pending

    def handlers_run(self) -> bool:
        """Returns whether a handler is running, including one whose attempt no longer counts."""
        return any(lane.running for lane in self.lanes.values())

    @property
    def uncommitted(self) -> int:
        """How many outcomes are not in the database yet."""
        return len(self._ended) + sum(map(len, self._committing))

    @property
    def held_up(self) -> int:
        """How many outcomes are held up by other sessions."""
        return len(self._held_up) + sum(map(len, self._committing_again))

    @property
    def ended(self) -> int:
        """How many outcomes wait to join a batch."""
        return len(self._ended)

    @property
    def committing(self) -> bool:
        """Whether a batch is on its way."""
        return bool(self._committing)

    def may_take_careful(self) -> bool:
        """Returns whether a job that may kill this process may be claimed: none is in flight or uncommitted."""
        running = any(lane.careful for lane in self.lanes.values())
        return not running and not any(job.careful for job in self._uncommitted())

    def _full(self) -> bool:
        return self.uncommitted > MOST_UNCOMMITTED or self.held_up > MOST_HELD_UP

    def _uncommitted(self) -> list[Job]:
        batches = self._ended, *self._committing, self._held_up, *self._committing_again
        return [job for batch in batches for job in batch.jobs]

    # Waiting.

    async def room(self) -> list[tuple[Lane, int]]:
        """Waits until lanes may have more jobs; returns these lanes, and how many jobs each may have."""
        while not (lanes := self.lanes.with_room()) or self._full():
            if not self.lanes:
                break  # a worker that runs schedules only
            await self.wakeups.until_room(self.lanes.held_for())
        return lanes

    async def more_room(self) -> None:
        """Waits until a claim is worth its round trip: a good part of a lane is free, or a second has passed."""
        if any(room * 4 > lane.slots for lane, room in self.lanes.with_room()):
            return
        await self.wakeups.until_room(ROOM_WAIT)
        await asyncio.sleep(ROOM_LINGER)

    async def quiet(self) -> None:
        """Waits until no attempt is running, nor waits to be committed or released."""
        while self.busy():
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_POLL):
                    await self._quiet.wait()

    def _limits_released(self) -> None:
        self.wakeups.limits_released()
        self._has_room()

    def _has_room(self) -> None:
        self.wakeups.room()
        self._quiet.set()
        # A job that has just ended may be due again at once, unseen by a claim in progress. A drain claims once more.
        if self._draining and not self.busy():
            self.wakeups.wake()
