"""Runs attempts in the event loop, in a thread or in a transaction of their own, and ends those that time out.

A handler that hangs in its thread or swallows its cancellation keeps its slot after the timeout. Otherwise more
handlers would run at once than the stage allows. When a stage has lost all its slots in this way, the worker ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg

from ..database import user_transaction
from ..database.connection_group import ConnectionGroup
from ..database.link import first_line
from ..database.pool import Pool
from ..database.session import clean
from ..database.user_transaction import Clean, Steps
from ..errors import HandlerError
from ..process.pulling import Pulling
from ..process.threads import NoThread, Threads
from . import transaction
from .checkpoint import Checkpoints
from .handle import begin, handle_async, handle_job
from .handlers import Handler, Handlers, lost_after, named, where
from .inflight import InFlight
from .job import Failed, Finished, Job, Missed, Outcome, PutBack, Trouble, fail
from .lane import Lane
from .release import HELD_UP, Releaser
from .run import Run

log = logging.getLogger("outbox.worker")

WATCH_EVERY = 0.02
"""Seconds between two checks for attempts that have exceeded their stage's timeout."""

NOTICE = 1.0
"""Seconds after which the event loop counts as blocked. A busy machine delays a turn of the loop by less."""

LOG_EVERY = 0.1
"""Seconds of commits in handlers' own transactions that share one log line."""

RECONNECT_AFTER = 0.2
"""Seconds before jobs are released whose transactions could not begin: the database may be back by then."""

MOST_NOT_STARTED = 30
"""How often in a row a job is put back whose handler could not be called: enough for an outage of half an hour."""


class Attempts:
    """Starts the jobs that wait in the lanes while there are free slots, and ends each attempt."""

    def __init__(
        self,
        dsn: str,
        inflight: InFlight,
        releaser: Releaser,
        checkpoints: Checkpoints,
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
        self._context = contextvars.copy_context()
        self.handlers = Handlers(inflight.lanes)
        self._timers: dict[Lane, asyncio.TimerHandle] = {}
        self._releasing: asyncio.Task[None] | None = None
        self._committed_alone: Counter[str] = Counter()  # by stage, not logged yet
        in_threads = [lane for lane in inflight.lanes.values() if not lane.stage.is_async]
        self._threads = {lane: Threads(lane.stage.queue) for lane in in_threads if lane.stage.transaction}
        self._pulling = {
            lane: Pulling(lane.stage.queue, self._handle_in_thread, self._collect)
            for lane in in_threads
            if not lane.stage.transaction
        }
        self._pool = Pool(dsn, "handler", group, pooled=pooled)
        self._clean = Clean(clean("handler", pooled=pooled), inside=pooled)

    async def close(self) -> None:
        self._log_committed_alone()
        for threads in self._threads.values():
            threads.close()
        for pulling in self._pulling.values():
            pulling.close()
        await self._pool.close()

    def stop_starting(self) -> None:
        """Starts no more handlers; those that run go on."""
        self._starting = False

    def start(self, lane: Lane) -> None:
        """Starts the jobs that wait in a lane, if there are free slots and their start times have come."""
        if lane.paced and (late := lane.take_late()):
            self._missed(lane, late)
        while self._starting and (jobs := self._inflight.start(lane)):
            deadline = time.monotonic() + lane.stage.timeout
            for job in jobs:
                job.begun, job.late, job.deadline, job.checkpoints = False, False, deadline, self._checkpoints
            handler = self.handlers.begin(lane, jobs)
            if lane in self._pulling:
                self._pull(handler)
                continue
            attempt = self._in_transaction(lane, jobs) if lane.stage.transaction else self._handle(handler)
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
                self._release_waiting(lane)

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
                self._missed(lane, [job])
                job.take_away("it was not started in time")

    def _release_waiting(self, lane: Lane) -> None:
        """Releases the jobs that wait behind handlers that don't end. Their attempts aren't counted."""
        log.info("%s: released %s jobs that waited for a slot", lane.stage.queue, len(lane.waiting))
        self._inflight.not_begun(lane)
        self._release_late()

    def _run(self, handler: Handler, attempt: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs an attempt, or its end, in a task."""
        handler.task = self._loop.create_task(self._attempt(handler, attempt), context=self._context.copy())
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
            await self._no_thread(lane, jobs, error)
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
            self._missed(handler.lane, handler.jobs)
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
            self._run(handler, self._no_thread(handler.lane, handler.jobs, error))

    def _handle_in_thread(self, handler: Handler) -> Outcome:
        return self._context.copy().run(handle_job, handler.jobs[0])

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

    async def _no_thread(self, lane: Lane, jobs: list[Job], error: NoThread) -> None:
        await self._not_started(lane, jobs, f"there is no thread for its handler: {error}")

    async def _not_started(self, lane: Lane, jobs: list[Job], why: str) -> None:
        """Puts back jobs whose handler could not be called. Their attempts aren't counted."""
        log.warning("%s: %s; %s not started", lane.stage.queue, why, named(jobs))
        await asyncio.sleep(RECONNECT_AFTER)
        if held := [job for job in jobs if job.lost is None]:
            await self._releaser.put_back(held, Trouble(why, most=MOST_NOT_STARTED))

    async def _in_transaction(self, lane: Lane, jobs: list[Job]) -> None:
        try:
            if lane.stage.is_async:
                async with self._pool.connection() as conn:
                    ended = await user_transaction.run_async(conn, self._steps(conn, lane, jobs), self._clean)
            else:
                ended = await self._threads[lane].call(partial(self._in_sync_transaction, lane, jobs))
        except (psycopg.Error, OSError) as error:
            await self._not_started(lane, jobs, f"its transaction was not begun: {first_line(error)}")
            return
        if isinstance(ended, transaction.TookTurns):
            for job in jobs:
                job.task = None
            self._learn(lane, len(jobs), ended)
            # First what waits for nothing; last what starts again, perhaps while this one waits.
            for some, how in sorted(ended.ended, key=_order):
                await self._transaction_ended(lane, some, how)
            lane.again(ended.left)
        else:
            if lane.sharing is not None:
                lane.sharing.had_own(jobs[0].took, lane.attempts, waiting=bool(lane.waiting))
            await self._transaction_ended(lane, jobs, ended)

    def _learn(self, lane: Lane, jobs: int, took: transaction.TookTurns) -> None:
        """Notes what a shared transaction tells about the next ones."""
        sharing = lane.sharing
        assert sharing is not None
        if took.odd:
            sharing.never(took.odd)
        if took.conflict:
            sharing.conflicted()
        sharing.ended(jobs - len(took.left), cut=took.cut and bool(took.left), waiting=bool(lane.waiting or took.left))

    async def _transaction_ended(self, lane: Lane, jobs: list[Job], ended: transaction.Ended) -> None:
        match ended:
            case transaction.Committed(finished):
                self._done_alone(finished)
            case transaction.Failures(failed):
                for job, outcome in failed:
                    self._inflight.end(job, outcome)
            case transaction.RolledBackTogether():
                log.info("%s: rolled back with %s, each is tried alone", lane.stage.queue, named(jobs))
                lane.again_alone(jobs)
            case transaction.NotHeld() if await self._releaser.is_unchanged(jobs[0]):
                told = "it changed its own workflow or job through run.connection; return what is to change"
                self._inflight.end(jobs[0], fail(jobs[0], HandlerError(told)))
            case transaction.NotHeld():
                await self._releaser.not_held(jobs)
            case transaction.HeldUp():
                await self._releaser.put_back(jobs, HELD_UP)
            case PutBack(trouble):
                await self._releaser.put_back(jobs, trouble)
            case Missed():
                self._missed(lane, jobs)

    def _in_sync_transaction(self, lane: Lane, jobs: list[Job]) -> transaction.Ended | transaction.TookTurns:
        with self._pool.sync_connection() as conn:
            return user_transaction.run(conn, self._steps(conn, lane, jobs), self._clean)

    def _steps(
        self, conn: transaction.Connection, lane: Lane, jobs: list[Job]
    ) -> Steps[transaction.Ended | transaction.TookTurns]:
        if lane.sharing is not None and len(jobs) > 1:
            return transaction.take_turns(conn, jobs, self._clean.statement)
        return transaction.attempt(conn, jobs)

    def _missed(self, lane: Lane, jobs: list[Job]) -> None:
        """Hands jobs that have missed their start time here to other workers, all in one go."""
        if held := [job for job in jobs if job.lost is None]:
            self._inflight.missed(lane, held)
            self._release_late()

    def _release_late(self) -> None:
        if self._releasing is None or self._releasing.done():
            self._releasing = self._loop.create_task(self._releaser.late())

    def _done_alone(self, finished: list[tuple[Job, Finished]]) -> None:
        self._inflight.committed_alone(finished)
        if not self._committed_alone:
            self._loop.call_later(LOG_EVERY, self._log_committed_alone)
        for job, _ in finished:
            self._committed_alone[job.stage.queue] += 1

    def _log_committed_alone(self) -> None:
        for queue, count in self._committed_alone.items():
            log.info("%s: %s done in transactions of their own", queue, count, extra={"stages": queue, "done": count})
        self._committed_alone.clear()


def _order(ended: tuple[list[Job], transaction.Ended]) -> int:
    match ended[1]:
        case transaction.RolledBackTogether():
            return 2
        case transaction.NotHeld() | transaction.HeldUp() | PutBack():
            return 1
        case _:
            return 0


def _too_slow(job: Job) -> Failed:
    why = "" if job.stage.is_async else "; its thread goes on, and keeps its slot"
    return fail(job, TimeoutError(f"no outcome within the stage's timeout of {job.stage.timeout:g} s{why}"))
