"""Runs attempts where they belong: in the event loop, in a thread, or in a transaction of their own; in time or not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from . import transaction
from .commit import Committer
from .documents import printable
from .errors import HandlerError
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Outcome, fail
from .lane import Lane, Lanes
from .link import engine_conninfo, first_line, threshold

log = logging.getLogger("outbox.worker")


class Attempts:
    """Starts what waits in the lanes while there are free slots; each outcome goes to the committer."""

    def __init__(
        self, dsn: str, lanes: Lanes, committer: Committer, *, pooled: bool, on_ended: Callable[[], None]
    ) -> None:
        self._lanes = lanes
        self._committer = committer
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._starting = True
        in_threads = [lane for lane in lanes.values() if not lane.stage.is_async]
        in_loop = [lane for lane in lanes.values() if lane.stage.is_async]
        self._threads = ThreadPoolExecutor(_slots(in_threads), thread_name_prefix="outbox")
        conninfo = engine_conninfo(dsn, "handler")
        kwargs = {"prepare_threshold": threshold(pooled)}
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
        """Start what waits in a lane, as far as there are free slots."""
        while self._starting and (job := lane.next()) is not None:
            lane.running[job.workflow_id] = job
            job.deadline = time.monotonic() + lane.stage.timeout
            job.task = self._loop.create_task(self._attempt(lane, job))

    async def watch(self) -> None:
        """Take overdue attempts away from their handlers, for ever."""
        while True:
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

    async def _attempt(self, lane: Lane, job: Job) -> None:
        try:
            if lane.stage.transaction:
                await self._in_transaction(job)
            else:
                self._committer.put(job, await self._handle(job))
        except asyncio.CancelledError:
            if not job.lost:
                self._committer.put(job, fail(job, RuntimeError("the handler was cancelled")))
        except Exception as error:
            # The engine's own trouble costs an attempt, not the worker.
            self._committer.put(job, fail(job, error))
        finally:
            if lane.running.get(job.workflow_id) is job:
                del lane.running[job.workflow_id]
            lane.careful -= job.careful
            lane.finished()
            self.start(lane)
            self._on_ended()

    async def _handle(self, job: Job) -> Outcome:
        run = begin(job)
        if isinstance(run, Failed):
            return run
        if job.stage.is_async:
            return await handle_async(run)
        return await self._loop.run_in_executor(self._threads, handle_sync, run)

    async def _in_transaction(self, job: Job) -> None:
        outcome: Outcome | None
        try:
            if job.stage.is_async:
                async with self._pool.connection() as conn:
                    outcome = await transaction.run_async(conn, job)
            else:
                outcome = await self._loop.run_in_executor(self._threads, self._in_sync_transaction, job)
        except (psycopg.Error, OSError) as error:
            # The database was away before the handler began: no attempt is burnt.
            log.warning("%s %s: %s; not started", job.stage.queue, printable(job.entity_id), first_line(error))
            await asyncio.sleep(0.2)
            await self._committer.not_held([job])
            return
        if isinstance(outcome, Finished):
            self._committer.committed_itself(job, outcome)
        elif outcome is not None:
            self._committer.put(job, outcome)
        elif await self._committer.is_unchanged(job):
            own = HandlerError("it changed its own workflow or job through run.connection; return what is to change")
            self._committer.put(job, fail(job, own))
        else:
            await self._committer.not_held([job])

    def _in_sync_transaction(self, job: Job) -> Outcome | None:
        with self._sync_pool.connection() as conn:
            return transaction.run_sync(conn, job)


def _slots(lanes: list[Lane]) -> int:
    return max(1, sum(lane.concurrency for lane in lanes))


def _transactions(lanes: list[Lane]) -> int:
    return _slots([lane for lane in lanes if lane.stage.transaction])
