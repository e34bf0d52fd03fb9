"""Step 4: one statement for a batch of outcomes. A job that is no longer held contributes nothing.

Statements can be repeated: what they did the first time is no longer held the second time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..database import killpoints
from ..database.link import Link
from ..texts import printable
from . import commit
from .job import Failed, Finished, Job, fail

log = logging.getLogger("outbox.worker")

BATCH = 200
BATCH_SIZE = 64 * 2**20
"""Characters of JSON in a batch, but for its first outcome's: Postgres closes the connection at 1 GB a statement."""

LINGER = 0.002
"""Seconds that an outcome waits for others while handlers run."""

LOG_EVERY = 0.1
"""Seconds of handlers' own transactions that share a line in the log."""


@dataclass(slots=True)
class Counts:
    """What has become of a worker's attempts."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    lost: int = 0


class Committer:
    """The committing loop: outcomes in, batches out, each repeated until the database has answered it.

    A batch takes a link; while it is on its way another one leaves on the next link, if it is full.

    `busy` tells whether handlers run, `on_next` is told of each (pipeline, status) that was reached, `on_delay`
    of each back-off in seconds, `on_committed` that there is room again, `on_again` that a job was put back.
    """

    def __init__(
        self,
        links: Sequence[Link],
        counts: Counts,
        *,
        busy: Callable[[], bool],
        on_next: Callable[[str, str], None],
        on_delay: Callable[[float], None],
        on_committed: Callable[[], None],
        on_again: Callable[[], None],
    ) -> None:
        self._link = links[0]
        self._free = list(reversed(links))
        self._counts = counts
        self._busy = busy
        self._on_next = on_next
        self._on_delay = on_delay
        self._on_committed = on_committed
        self._on_again = on_again
        self._finished: list[tuple[Job, Finished]] = []
        self._failed: list[tuple[Job, Failed]] = []
        self._underway: dict[Link, list[Job]] = {}
        self._themselves: Counter[str] = Counter()  # committed in their own transactions and not logged yet, by stage
        self._changed = asyncio.Event()

    def put(self, job: Job, outcome: Finished | Failed) -> None:
        """Queue an outcome for the next commit, unless the attempt no longer counts."""
        if job.lost is not None:
            log.info("%s %s: LeaseLost, %s", job.stage.queue, printable(job.entity_id), job.lost)
            return
        if isinstance(outcome, Finished):
            self._finished.append((job, outcome))
        else:
            self._failed.append((job, outcome))
        self._changed.set()

    def committed_itself(self, batch: Sequence[tuple[Job, Finished]]) -> None:
        """Count attempts that were committed in a transaction of their own."""
        self._counts.done += len(batch)
        if not self._themselves:
            asyncio.get_running_loop().call_later(LOG_EVERY, self._log_themselves)
        for job, outcome in batch:
            self._themselves[job.stage.queue] += 1
            self._on_next(job.stage.pipeline.name, outcome.status)
        self._await(batch)
        self._on_committed()

    def _await(self, batch: Sequence[tuple[Job, Finished]]) -> None:
        """Tell when what has just begun to wait will be due."""
        for _, outcome in batch:
            if outcome.wait is not None:
                for seconds in (outcome.wait.get("after"), outcome.wait.get("within")):
                    if seconds is not None:
                        self._on_delay(seconds)

    def _log_themselves(self) -> None:
        for queue, count in self._themselves.items():
            log.info("%s: %s done in transactions of their own", queue, count, extra={"stages": queue, "done": count})
        self._themselves.clear()

    @property
    def jobs(self) -> list[Job]:
        """What is not committed yet."""
        underway = [job for batch in self._underway.values() for job in batch]
        return [*(job for job, _ in self._finished), *(job for job, _ in self._failed), *underway]

    def __len__(self) -> int:
        return self._waiting + sum(map(len, self._underway.values()))

    @property
    def _waiting(self) -> int:
        return len(self._finished) + len(self._failed)

    async def run(self) -> None:
        """Commit for ever."""
        async with asyncio.TaskGroup() as batches:
            while True:
                await self._changed.wait()
                self._changed.clear()
                if not self._underway and self._waiting < BATCH and self._busy():
                    await asyncio.sleep(LINGER)
                # What fills no batch waits for those that are under way: more of it costs little more.
                while self._free and self._waiting >= (BATCH if self._underway else 1):
                    finished, self._finished = _take(self._finished, _fitting(self._finished))
                    failures, self._failed = _take(self._failed, BATCH)
                    link = self._free.pop()
                    self._underway[link] = [*(job for job, _ in finished), *(job for job, _ in failures)]
                    batches.create_task(self._commit(link, finished, failures))

    async def _commit(
        self, link: Link, finished: list[tuple[Job, Finished]], failures: list[tuple[Job, Failed]]
    ) -> None:
        for owner in {job.owner for job, _ in finished}:
            await self._finish(link, [item for item in finished if item[0].owner == owner])
        for owner in {job.owner for job, _ in failures}:
            await self._fail(link, [item for item in failures if item[0].owner == owner])
        del self._underway[link]
        self._free.append(link)
        self._changed.set()
        self._on_committed()

    async def drained(self, timeout: float) -> None:
        """Wait until all is committed, at most `timeout` seconds."""
        until = time.monotonic() + timeout
        while len(self) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self._log_themselves()

    async def not_held(self, jobs: list[Job]) -> None:
        """Settle jobs whose commit was refused: data changed by somebody else (run again), or taken away (lost)."""
        again = await self.give_back(jobs)
        for job in jobs:
            if job.workflow_id in again:
                log.info(
                    "%s %s: its data was changed meanwhile; it runs again",
                    job.stage.queue,
                    printable(job.entity_id),
                )
            else:
                self._counts.lost += 1
                log.warning("%s %s: LeaseLost, nothing of it was written", job.stage.queue, printable(job.entity_id))
        if again:
            self._on_again()

    async def put_back(self, jobs: list[Job], why: str) -> None:
        """Free jobs of a stage that have missed their moments here, which are given anew; somebody takes them."""
        await self.give_back(jobs, begun=False)
        log.debug("%s: gave back %s jobs: %s", jobs[0].stage.queue, len(jobs), why)
        self._on_again()

    async def give_back(self, jobs: Sequence[Job], *, begun: bool = True) -> set[str]:
        """Free jobs without burning an attempt, nor a moment if none has begun; returns those that were still held."""
        given: set[str] = set()
        for owner in {job.owner for job in jobs}:
            mine = [job for job in jobs if job.owner == owner]
            given |= {row[0] for row in await self._link.repeat(*commit.give_back(mine))}
        for stage in {job.stage.queue for job in jobs if job.moment and not begun}:
            unused = [job for job in jobs if job.moment and job.stage.queue == stage]
            await self._link.repeat(*commit.return_start_times(unused))
        return given

    async def is_unchanged(self, job: Job) -> bool:
        """Whether the workflow is still as it was claimed."""
        question = commit.SQL["workflow_unchanged"], {"id": job.workflow_id, "version": job.version}
        return bool(await self._link.repeat(*question))

    async def _finish(self, link: Link, batch: list[tuple[Job, Finished]]) -> None:
        started = time.monotonic()
        connections = link.connections
        killpoints.passing("K3")
        killpoints.sending("K4")
        try:
            rows = await link.repeat(*commit.finish(batch))
        except Exception as error:
            # The database refuses something in it. Alone, each is committed or told what is wrong with it.
            if len(batch) > 1:
                for item in batch:
                    await self._finish(link, [item])
            else:
                await self._fail(link, [(batch[0][0], fail(batch[0][0], error))])
            return
        killpoints.passing("K5")
        held = {row[0] for row in rows}
        if len(held) < len(batch) and link.connections != connections:
            # An answer was lost on the way: what the first try had committed is done, not lost.
            held |= await self._committed([job for job, _ in batch if job.workflow_id not in held])
        missing = [job for job, _ in batch if job.workflow_id not in held]
        self._counts.done += len(held)
        for pipeline, status in {(job.stage.pipeline.name, outcome.status) for job, outcome in batch}:
            self._on_next(pipeline, status)
        self._await(batch)
        _log_batch(batch, len(held), "done", started)
        if missing:
            await self.not_held(missing)

    async def _fail(self, link: Link, batch: list[tuple[Job, Failed]]) -> None:
        started = time.monotonic()
        held: set[str] = set()
        try:
            held = {row[0] for row in await link.repeat(*commit.fail(batch))}
        except Exception as error:
            log.error("can't put %s jobs back: %s", len(batch), printable(str(error)))
        dead = 0
        missing = [job for job, _ in batch if job.workflow_id not in held]
        # The answer to a handler's own COMMIT may have been lost: what looked like a failure is done.
        done = await self._committed(missing) if missing else set()
        for job, outcome in batch:
            where = f"{job.stage.queue} {printable(job.entity_id)}"
            if job.workflow_id in done:
                self._counts.done += 1
                log.info("%s: done after all, though its commit was not answered", where)
            elif job.workflow_id not in held:
                self._counts.lost += 1
            elif outcome.delay is None:
                dead += 1
                log.warning("%s is dead after %s attempts: %s", where, job.attempt, printable(outcome.error))
            else:
                log.debug("%s: %s", where, printable(outcome.error))
                self._on_delay(outcome.delay)
        self._counts.dead += dead
        self._counts.retried += len(held) - dead
        _log_batch(batch, len(held) - dead, "to try again", started)

    async def _committed(self, jobs: Sequence[Job]) -> set[str]:
        """Look which of these jobs of one owner are in the history as its own changes."""
        return {row[0] for row in await self._link.repeat(*commit.finished_by(jobs))}


Queued = TypeVar("Queued", bound=tuple[Job, Any])


def _take(queue: list[Queued], count: int) -> tuple[list[Queued], list[Queued]]:
    """Return the next batch, of at most `count`, and the rest.

    Of a workflow a batch has one attempt: answer and messages go by workflow. There are two where a
    status was changed under a handler, which then ends together with that of the next stage.
    """
    batch, rest = queue[:count], queue[count:]
    first = {item[0].workflow_id: item for item in reversed(batch)}
    if len(first) < len(batch):
        rest = [item for item in batch if first[item[0].workflow_id] is not item] + rest
        batch = [item for item in batch if first[item[0].workflow_id] is item]
    return batch, rest


def _fitting(finished: Sequence[tuple[Job, Finished]]) -> int:
    """Return how many of these one statement takes."""
    size = 0
    for count, (_, outcome) in enumerate(finished[:BATCH]):
        size += outcome.size
        if size > BATCH_SIZE and count:
            return count
    return min(BATCH, len(finished))


def _log_batch(batch: Sequence[tuple[Job, Any]], count: int, what: str, started: float) -> None:
    if count and log.isEnabledFor(logging.INFO):
        stages = ", ".join(sorted({job.stage.queue for job, _ in batch}))
        took = round((time.monotonic() - started) * 1000, 1)
        extra = {"stages": stages, what.replace(" ", "_"): count, "ms": took}
        log.info("%s: %s %s in %.1f ms", stages, count, what, took, extra=extra)
