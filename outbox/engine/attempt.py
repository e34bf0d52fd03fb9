"""Runs attempts where they belong: in the event loop, in a thread, or in a transaction of their own; in time or not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from ..database.dsn import engine_conninfo
from ..database.link import first_line, threshold
from ..errors import HandlerError
from ..texts import printable
from . import transaction
from .checkpoint import Checkpoints
from .committer import Committer
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Missed, Outcome, fail
from .lane import Lane, Lanes

log = logging.getLogger("outbox.worker")


class Attempts:
    """Starts what waits in the lanes while there are free slots; each outcome goes to the committer."""

    def __init__(
        self,
        dsn: str,
        lanes: Lanes,
        committer: Committer,
        checkpoints: Checkpoints,
        *,
        pooled: bool,
        on_ended: Callable[[], None],
    ) -> None:
        self._checkpoints = checkpoints
        self._lanes = lanes
        self._committer = committer
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._starting = True
        self._begun = asyncio.Event()
        self._giving_back: asyncio.Task[None] | None = None
        self.late: list[Job] = []
        """Jobs that are being given back."""
        in_threads = [lane for lane in lanes.values() if not lane.stage.is_async]
        in_loop = [lane for lane in lanes.values() if lane.stage.is_async]
        self._threads = ThreadPoolExecutor(_slots(in_threads), thread_name_prefix="outbox")
        conninfo = engine_conninfo(dsn, "handler")
        # Transactions are begun as such: else psycopg sends a BEGIN of its own where one is only on its way.
        kwargs = {"prepare_threshold": threshold(pooled), "autocommit": True}
        self._pool = AsyncConnectionPool(
            conninfo, kwargs=kwargs, min_size=0, max_size=_transactions(in_loop), open=False
        )
        self._sync_pool = ConnectionPool(
            conninfo, kwargs=kwargs, min_size=0, max_size=_transactions(in_threads), open=False
        )

    async def open(self) -> None:
        await self._pool.open()
        self._sync_pool.open()

    async def close(self) -> None:
        await self._pool.close(timeout=1)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._sync_pool.close, 1)

    def stop_starting(self) -> None:
        """Let what runs run on, and start nothing more."""
        self._starting = False

    def start(self, lane: Lane) -> None:
        """Start what waits in a lane, as far as there are free slots and its moment has come."""
        if lane.paced and (late := lane.take_late()):
            self._put_back(lane, late)
        while self._starting and (jobs := lane.next()):
            lane.attempts += 1
            self._begun.set()
            task = self._loop.create_task(self._attempt(lane, jobs))
            deadline = time.monotonic() + lane.stage.timeout
            for job in jobs:
                lane.running[job.workflow_id] = job
                job.deadline, job.task, job.checkpoints = deadline, task, self._checkpoints
        if lane.paced and lane.waiting and (rest := lane.waiting[0].begins - time.monotonic()) > 0:
            if lane.timer is not None:
                lane.timer.cancel()
            lane.timer = self._loop.call_later(rest, self.start, lane)

    def _put_back(self, lane: Lane, late: list[Job]) -> None:
        """Have others begin what has missed its moment here: all that has, in one go."""
        self.late += late
        if self._giving_back is None or self._giving_back.done():
            lane.missed()
            self._giving_back = self._loop.create_task(self._give_back())

    async def _give_back(self) -> None:
        while self.late:
            late = [job for job in self.late if job.stage is self.late[0].stage]
            await self._committer.put_back(late, "this process was too busy at their moment")
            self.late = [job for job in self.late if job not in late]
            self._on_ended()

    async def watch(self) -> None:
        """Take overdue attempts away from their handlers, for ever."""
        while True:
            if not any(lane.running for lane in self._lanes.values()):
                self._begun.clear()
                await self._begun.wait()
            await asyncio.sleep(0.02)
            now = time.monotonic()
            for lane in self._lanes.values():
                for job in list(lane.running.values()):
                    if job.deadline > now:
                        break  # they started in this order, with the same timeout
                    if job.lost is None:
                        late = TimeoutError(f"no outcome within the stage's timeout of {lane.stage.timeout:g} s")
                        self._committer.put(job, fail(job, late))
                        job.take_away("timed out")

    async def _attempt(self, lane: Lane, jobs: list[Job]) -> None:
        try:
            if lane.stage.transaction:
                await self._in_transaction(lane, jobs)
            else:
                outcome = await self._handle(jobs[0])
                if isinstance(outcome, Missed):
                    self._put_back(lane, jobs)
                else:
                    self._committer.put(jobs[0], outcome)
        except asyncio.CancelledError:
            for job in jobs:
                if not job.lost:
                    self._committer.put(job, fail(job, RuntimeError("the handler was cancelled")))
        except Exception as error:
            # The engine's own trouble costs an attempt, not the worker.
            for job in jobs:
                self._committer.put(job, fail(job, error))
        finally:
            lane.attempts -= 1
            for job in jobs:
                if lane.running.get(job.workflow_id) is job:
                    del lane.running[job.workflow_id]
                lane.careful -= job.careful and job not in lane.waiting
            lane.finished(len(jobs))
            self.start(lane)
            self._on_ended()

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
                    outcomes = await transaction.run_async(conn, jobs)
            else:
                outcomes = await self._loop.run_in_executor(self._threads, self._in_sync_transaction, jobs)
        except (psycopg.Error, OSError) as error:
            # The database was away before the handler began: no attempt is burnt.
            log.warning("%s: %s; %s not started", lane.stage.queue, first_line(error), _named(jobs))
            await asyncio.sleep(0.2)
            await self._committer.not_held(jobs)
            return
        if Missed() in outcomes:
            self._put_back(lane, jobs)
            return
        if not outcomes:
            log.info("%s: rolled back with %s, each is tried alone", lane.stage.queue, _named(jobs))
            lane.again_alone(jobs)
        elif finished := [(job, it) for job, it in zip(jobs, outcomes, strict=True) if isinstance(it, Finished)]:
            self._committer.committed_itself(finished)
        for job, outcome in zip(jobs, outcomes, strict=False):
            if isinstance(outcome, Failed):
                self._committer.put(job, outcome)
            elif outcome is None and await self._committer.is_unchanged(job):
                own = HandlerError(
                    "it changed its own workflow or job through run.connection; return what is to change"
                )
                self._committer.put(job, fail(job, own))
            elif outcome is None:
                await self._committer.not_held([job])

    def _in_sync_transaction(self, jobs: list[Job]) -> Sequence[Outcome | None]:
        with self._sync_pool.connection() as conn:
            return transaction.run_sync(conn, jobs)


def _named(jobs: list[Job]) -> str:
    others = f" and {len(jobs) - 1} others" if len(jobs) > 1 else ""
    return printable(jobs[0].entity_id) + others


def _slots(lanes: list[Lane]) -> int:
    return max(1, sum(lane.concurrency for lane in lanes))


def _transactions(lanes: list[Lane]) -> int:
    return _slots([lane for lane in lanes if lane.stage.transaction])
