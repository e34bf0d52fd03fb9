"""Runs attempts where they belong: in the event loop, in a thread, or in a transaction of their own; in time or not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from ..database import user_transaction
from ..database.dsn import engine_conninfo
from ..database.link import first_line
from ..database.session import READING, clean, needed, threshold
from ..errors import HandlerError
from ..texts import printable
from . import transaction
from .checkpoint import Checkpoints
from .handle import begin, handle_async, handle_sync
from .inflight import InFlight
from .job import Failed, Finished, Job, Missed, Outcome, fail
from .lane import Lane
from .release import Releaser

log = logging.getLogger("outbox.worker")

WATCH_EVERY = 0.02
"""Seconds between two looks for attempts that have outlived their stage's timeout."""

LOG_EVERY = 0.1
"""Seconds of commits in handlers' own transactions that share a line in the log."""

RECONNECT_AFTER = 0.2
"""Seconds before jobs are released whose transactions the database did not take: it may be back by then."""


class Attempts:
    """Starts what waits in the lanes while there are free slots, and has each job end."""

    def __init__(
        self, dsn: str, inflight: InFlight, releaser: Releaser, checkpoints: Checkpoints, *, pooled: bool
    ) -> None:
        self._inflight = inflight
        self._releaser = releaser
        self._checkpoints = checkpoints
        self._loop = asyncio.get_running_loop()
        self._starting = True
        self._timers: dict[Lane, asyncio.TimerHandle] = {}
        self._releasing: asyncio.Task[None] | None = None
        self._committed_alone: Counter[str] = Counter()  # by stage, not logged yet
        in_threads = [lane for lane in inflight.lanes.values() if not lane.stage.is_async]
        in_loop = [lane for lane in inflight.lanes.values() if lane.stage.is_async]
        self._threads = ThreadPoolExecutor(_slots(in_threads), thread_name_prefix="outbox")
        conninfo = engine_conninfo(dsn, "handler")
        # Transactions are begun as such: else psycopg sends a BEGIN of its own where one is only on its way.
        kwargs = {"prepare_threshold": threshold(pooled), "autocommit": True}
        self._needed = needed(READING, pooled=pooled)
        self._clean = None if pooled else clean()  # a pooler's sessions have the settings of whom it chooses
        self._pool = AsyncConnectionPool(
            conninfo, kwargs=kwargs, min_size=0, max_size=_transactions(in_loop), open=False, configure=self._set_up
        )
        self._sync_pool = ConnectionPool(
            conninfo, kwargs=kwargs, min_size=0, max_size=_transactions(in_threads), open=False,
            configure=self._set_up_sync,
        )  # fmt: skip

    async def _set_up(self, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute(*self._needed)

    def _set_up_sync(self, conn: psycopg.Connection[Any]) -> None:
        conn.execute(*self._needed)

    async def open(self) -> None:
        await self._pool.open()
        self._sync_pool.open()

    async def close(self) -> None:
        self._log_committed_alone()
        await self._pool.close(timeout=1)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._sync_pool.close, 1)

    def stop_starting(self) -> None:
        """Lets what runs run on, and starts nothing more."""
        self._starting = False

    def start(self, lane: Lane) -> None:
        """Starts what waits in a lane, as far as there are free slots and its start time has come."""
        if lane.paced and (late := lane.take_late()):
            self._missed(lane, late)
        while self._starting and (jobs := self._inflight.start(lane)):
            task = self._loop.create_task(self._attempt(lane, jobs))
            deadline = time.monotonic() + lane.stage.timeout
            for job in jobs:
                job.deadline, job.task, job.checkpoints = deadline, task, self._checkpoints
        if lane.paced and lane.waiting and (rest := lane.waiting[0].starts - time.monotonic()) > 0:
            if timer := self._timers.get(lane):
                timer.cancel()
            self._timers[lane] = self._loop.call_later(rest, self.start, lane)

    async def watch(self) -> None:
        """Takes overdue attempts away from their handlers, for ever."""
        while True:
            if not self._inflight.handlers_run():
                self._inflight.something_started.clear()
                await self._inflight.something_started.wait()
            await asyncio.sleep(WATCH_EVERY)
            now = time.monotonic()
            for lane in self._inflight.lanes.values():
                for job in list(lane.running.values()):
                    if job.deadline > now:
                        break  # they started in this order, with the same timeout
                    if job.lost is None:
                        late = TimeoutError(f"no outcome within the stage's timeout of {lane.stage.timeout:g} s")
                        self._inflight.end(job, fail(job, late))
                        job.take_away("timed out")

    async def _attempt(self, lane: Lane, jobs: list[Job]) -> None:
        try:
            if lane.stage.transaction:
                await self._in_transaction(lane, jobs)
            else:
                outcome = await self._handle(jobs[0])
                if isinstance(outcome, Missed):
                    self._missed(lane, jobs)
                else:
                    self._inflight.end(jobs[0], outcome)
        except asyncio.CancelledError:
            for job in jobs:
                if not job.lost:
                    self._inflight.end(job, fail(job, RuntimeError("the handler was cancelled")))
        except Exception as error:
            # The engine's own trouble costs an attempt, not the worker.
            for job in jobs:
                self._inflight.end(job, fail(job, error))
        finally:
            lane.leave(jobs)
            self.start(lane)
            self._inflight.handler_returned()

    async def _handle(self, job: Job) -> Outcome:
        run = begin(job)
        if isinstance(run, Failed):
            return run
        if job.stage.is_async:
            return (await handle_async([run]))[0]
        return (await self._loop.run_in_executor(self._threads, handle_sync, [run]))[0]

    async def _in_transaction(self, lane: Lane, jobs: list[Job]) -> None:
        try:
            if lane.stage.is_async:
                async with self._pool.connection() as conn:
                    ended = await user_transaction.run_async(conn, transaction.attempt(conn, jobs), self._clean)
            else:
                ended = await self._loop.run_in_executor(self._threads, self._in_sync_transaction, jobs)
        except (psycopg.Error, OSError) as error:
            # The database was away before the handler was called: no attempt is burnt.
            log.warning("%s: %s; %s not started", lane.stage.queue, first_line(error), _named(jobs))
            await asyncio.sleep(RECONNECT_AFTER)
            await self._releaser.not_held(jobs)
            return
        match ended:
            case transaction.Committed(finished):
                self._done_alone(finished)
            case transaction.Failures(failed):
                for job, outcome in failed:
                    self._inflight.end(job, outcome)
            case transaction.RolledBackTogether():
                log.info("%s: rolled back with %s, each is tried alone", lane.stage.queue, _named(jobs))
                lane.again_alone(jobs)
            case transaction.NotHeld() if await self._releaser.is_unchanged(jobs[0]):
                told = "it changed its own workflow or job through run.connection; return what is to change"
                self._inflight.end(jobs[0], fail(jobs[0], HandlerError(told)))
            case transaction.NotHeld():
                await self._releaser.not_held(jobs)
            case Missed():
                self._missed(lane, jobs)

    def _in_sync_transaction(self, jobs: list[Job]) -> transaction.Ended:
        with self._sync_pool.connection() as conn:
            return user_transaction.run(conn, transaction.attempt(conn, jobs), self._clean)

    def _missed(self, lane: Lane, jobs: list[Job]) -> None:
        """Has other workers start what has missed its start time here: all that has, in one go."""
        self._inflight.missed(lane, jobs)
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


def _named(jobs: list[Job]) -> str:
    others = f" and {len(jobs) - 1} others" if len(jobs) > 1 else ""
    return printable(jobs[0].entity_id) + others


def _slots(lanes: list[Lane]) -> int:
    return max(1, sum(lane.concurrency for lane in lanes))


def _transactions(lanes: list[Lane]) -> int:
    return _slots([lane for lane in lanes if lane.stage.transaction])
