"""Starts attempts in the event loop, in threads or in transactions of their own, and ends those that time out.

A handler that hangs in its thread or swallows its cancellation keeps its slot after the timeout. Otherwise more
handlers would run at once than the stage allows. When a stage has lost all its slots in this way, the worker ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..definition.run import Run
from ..process.pulling import Pulling
from ..process.threads import ENDING, NoThread
from .effects import Ledger
from .handle import begin, handle_async, handle_job
from .handlers import Handler, Handlers, lost_after, where
from .inflight import InFlight
from .job import Failed, Finished, Job, Missed, Outcome, PutBack, fail
from .lane import Lane
from .release import Releaser
from .transactional import Transactional

log = logging.getLogger("outbox.worker")

WATCH_EVERY = 0.02
"""Seconds between two checks for attempts that have exceeded their stage's timeout."""

NOTICE = 1.0
"""Seconds after which the event loop counts as blocked. A busy machine delays a turn of the loop by less."""


class Attempts:
    """Starts the jobs that wait in the lanes while there are free slots, and ends each attempt."""

    def __init__(
        self,
        dsn: Dsn,
        inflight: InFlight,
        releaser: Releaser,
        checkpoints: Ledger,
        *,
        group: ConnectionGroup,
        pooled: bool,
    ) -> None:
        self._inflight = inflight
        self._releaser = releaser
        self._checkpoints = checkpoints
        self._loop = asyncio.get_running_loop()
        self._starting = True
        # Each attempt starts with the context variables as they were before any handler had set one.
        self.context = contextvars.copy_context()
        self.handlers = Handlers(inflight.lanes)
        self._timers: dict[Lane, asyncio.TimerHandle] = {}
        lanes = inflight.lanes.values()
        own = [lane for lane in lanes if lane.stage.transaction]
        self._transactional = Transactional(dsn, own, inflight, releaser, group, pooled=pooled)
        self._pulling = {
            lane: Pulling(lane.stage.queue, self._handle_in_thread, self._collect)
            for lane in lanes
            if not lane.stage.is_async and not lane.stage.transaction
        }

    async def close(self) -> None:
        for pulling in self._pulling.values():
            pulling.close()
        await self._transactional.close()
        for each in ENDING:
            await each()

    def stop_starting(self) -> None:
        """Starts no more handlers; those that run go on."""
        self._starting = False

    def start(self, lane: Lane) -> None:
        """Starts the jobs that wait in a lane, if there are free slots and their start times have come."""
        if lane.paced and (late := lane.take_late()):
            self._releaser.missed(lane, late)
        while self._starting and (jobs := self._inflight.start(lane)):
            deadline = time.monotonic() + lane.stage.timeout
            for job in jobs:
                job.begun, job.late, job.deadline, job.checkpoints = False, False, deadline, self._checkpoints
            handler = self.handlers.begin(lane, jobs)
            if lane in self._pulling:
                self._pull(handler)
                continue
            own = lane.stage.transaction
            attempt = self._transactional.run(lane, jobs) if own else self._handle(handler)
            task = self._run(handler, attempt)
            for job in jobs:
                job.task = task if lane.stage.is_async else None  # a thread can't be cancelled: it keeps its slot
        if lane.paced and lane.waiting and (rest := lane.waiting[0].starts - time.monotonic()) > 0:
            if timer := self._timers.get(lane):
                timer.cancel()
            self._timers[lane] = self._loop.call_later(rest, self.start, lane)

    async def watch(self) -> None:
        """Takes overdue jobs away from their handlers until it is cancelled."""
        while True:
            if not self._inflight.handlers_run():
                self._inflight.something_started.clear()
                await self._inflight.something_started.wait()
            before = time.monotonic()
            await asyncio.sleep(WATCH_EVERY)
            now = time.monotonic()
            if (stood := now - before - WATCH_EVERY) > NOTICE:
                # A handler has blocked the event loop; that time doesn't count against the other handlers.
                for job in self._inflight.lanes.running():
                    if job.stage.is_async:
                        job.deadline += stood
            for lane in self._inflight.lanes.values():
                self._time_out(lane, now)
            for lane in self.handlers.look_for_lost(now):
                self._releaser.not_begun(lane)

    def _time_out(self, lane: Lane, now: float) -> None:
        timeout = lane.stage.timeout
        for job in list(lane.running.values()):
            if job.deadline > now:
                if lane.stage.is_async and not lane.stage.transaction:
                    break  # jobs are in the order in which they began, and have the same timeout
            elif job.lost is None and job.turn_over:
                # Another's handler goes on although its attempt no longer counts.
                lane.again_alone([replace(job, deadline=0.0, begun=False, turn_over=False)])
                job.take_away("its transaction does not end")
            elif job.lost is None and job.begun:
                limits = lane.stage.limits
                if limits is not None and limits.crowded and not lane.stage.is_async:
                    # The limit counts what still runs in this thread. Keep the job until it ends or loses its slot.
                    job.late = True
                    if now - job.deadline < lost_after(lane):
                        continue
                self._inflight.end(job, _too_slow(job))
                job.take_away("timed out")
            elif job.lost is None:
                log.warning("%s: not started within %g s: released", where(job), timeout)
                self._releaser.missed(lane, [job])
                job.take_away("it was not started in time")

    def _run(self, handler: Handler, attempt: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs an attempt, or its end, in a task."""
        handler.task = self._loop.create_task(self._attempt(handler, attempt), context=self.context.copy())
        return handler.task

    async def _attempt(self, handler: Handler, attempt: Coroutine[Any, Any, None]) -> None:
        """Awaits an attempt, and frees its slot, whatever happens in it."""
        lane, jobs = handler.lane, handler.jobs
        try:
            await attempt
        except asyncio.CancelledError:
            for job in self._again(lane, jobs):
                if not job.lost:
                    self._inflight.end(job, fail(job, RuntimeError("the handler was cancelled")))
        except NoThread as error:
            await self._releaser.not_started(jobs, _no_thread(error))
        except Exception as error:
            # An error of the engine itself costs an attempt, not the worker.
            for job in self._again(lane, jobs):
                self._inflight.end(job, fail(job, error))
        finally:
            self._leave(handler)
            self.start(lane)
            self._inflight.handler_returned()

    def _again(self, lane: Lane, jobs: list[Job]) -> list[Job]:
        """Tries each of several jobs alone that took turns when something ended them all; returns the others."""
        if lane.sharing is None or len(jobs) == 1:
            return jobs
        lane.again_alone(jobs)
        return []

    async def _handle(self, handler: Handler) -> None:
        run = begin(handler.jobs[0])
        outcome: Outcome = (await handle_async([run]))[0] if isinstance(run, Run) else run
        if isinstance(outcome, PutBack):
            await self._releaser.put_back(handler.jobs, outcome.trouble)
        else:
            self._end(handler, outcome)

    def _end(self, handler: Handler, outcome: Finished | Failed | Missed) -> None:
        """Passes on the outcome of one job."""
        (job,) = handler.jobs
        if isinstance(outcome, Missed):
            self._releaser.missed(handler.lane, handler.jobs)
        else:
            self._inflight.end(job, _too_slow(job) if job.late else outcome)

    def _leave(self, handler: Handler) -> None:
        """Frees the slot of a handler that has returned."""
        self.handlers.end(handler)
        handler.lane.leave(handler.jobs)

    def _pull(self, handler: Handler) -> None:
        """Has a thread run a plain handler: each takes one job after the other."""
        try:
            self._pulling[handler.lane].put(handler)
        except NoThread as error:
            self._run(handler, self._releaser.not_started(handler.jobs, _no_thread(error)))

    def _handle_in_thread(self, handler: Handler) -> Outcome:
        return self.context.copy().run(handle_job, handler.jobs[0])

    def _collect(self, ended: Sequence[tuple[Handler, Outcome]]) -> None:
        """Passes on the outcomes of handlers that have returned in threads."""
        for handler, outcome in ended:
            if isinstance(outcome, PutBack):
                self._run(handler, self._releaser.put_back(handler.jobs, outcome.trouble))
            else:
                self._end(handler, outcome)
                self._leave(handler)
        for lane in {handler.lane: None for handler, _ in ended}:
            self.start(lane)
        self._inflight.handler_returned()


def _no_thread(error: NoThread) -> str:
    return f"there is no thread for its handler: {error}"


def _too_slow(job: Job) -> Failed:
    why = "" if job.stage.is_async else "; its thread goes on, and keeps its slot"
    return fail(job, TimeoutError(f"no outcome within the stage's timeout of {job.stage.timeout:g} s{why}"))
