"""Commits outcomes in batches: one statement for each, to which a job that is no longer held contributes nothing.

Statements can be repeated: what they did the first time is no longer held the second time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from ..database import killpoints
from ..database.link import Link
from ..texts import printable
from . import commit
from .batch import BATCH, Batch
from .inflight import InFlight
from .job import Failed, Finished, Job, refused
from .job_log import tell
from .release import Releaser

log = logging.getLogger("outbox.worker")

LINGER = 0.002
"""Seconds that an outcome waits for others while handlers run."""


class Committer:
    """The committing loop: takes what has ended, and repeats each batch until the database has answered it.

    A batch takes a link. While it is on its way another one leaves on the next link, if it is full.
    """

    def __init__(self, links: Sequence[Link], inflight: InFlight, releaser: Releaser) -> None:
        self._link = links[0]
        self._free = list(reversed(links))
        self._inflight = inflight
        self._releaser = releaser

    async def run(self) -> None:
        """Commits for ever."""
        inflight = self._inflight
        async with asyncio.TaskGroup() as batches:
            while True:
                await inflight.something_ended.wait()
                inflight.something_ended.clear()
                if not inflight.committing and inflight.ended < BATCH and inflight.handlers_run():
                    await asyncio.sleep(LINGER)
                # What fills no batch waits for those that are under way: more of it costs little more.
                while self._free and inflight.ended >= (BATCH if inflight.committing else 1):
                    batches.create_task(self._commit(self._free.pop(), inflight.take_batch()))

    async def _commit(self, link: Link, batch: Batch) -> None:
        for owner in {job.owner for job, _ in batch.finished}:
            await self._finish(link, [item for item in batch.finished if item[0].owner == owner])
        for owner in {job.owner for job, _ in batch.failed}:
            await self._fail(link, [item for item in batch.failed if item[0].owner == owner])
        self._free.append(link)
        self._inflight.committed(batch)

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
                await self._fail(link, [(batch[0][0], refused(batch[0][0], error))])
            return
        killpoints.passing("K5")
        held = {row[0] for row in rows}
        if len(held) < len(batch) and link.connections != connections:
            # An answer was lost on the way: what the first try had committed is done, not lost.
            held |= await self._committed([job for job, _ in batch if job.workflow_id not in held])
        missing = [job for job, _ in batch if job.workflow_id not in held]
        self._inflight.done(batch, len(held))
        _log_batch(batch, len(held), "done", started)
        if missing:
            await self._releaser.not_held(missing)

    async def _fail(self, link: Link, batch: list[tuple[Job, Failed]]) -> None:
        started = time.monotonic()
        held: set[str] = set()
        try:
            held = {row[0] for row in await link.repeat(*commit.fail(batch))}
        except Exception as error:
            if len(batch) > 1 or not batch[0][1].plain:
                for job, outcome in batch:
                    await self._fail(link, [(job, outcome if len(batch) > 1 else outcome.as_plain())])
                return
            log.error("can't put %s jobs back: %s", len(batch), printable(str(error)))
        missing = [job for job, _ in batch if job.workflow_id not in held]
        # The answer to a handler's own COMMIT may have been lost: what looked like a failure is done.
        done = await self._committed(missing) if missing else set()
        retried = 0
        for job, outcome in batch:
            if job.workflow_id in done:
                self._inflight.counts.done += 1
                where = f"{job.stage.queue} {printable(job.entity_id)}"
                log.info("%s: done after all, though its commit was not answered", where)
            elif job.workflow_id not in held:
                self._inflight.counts.lost += 1
            elif outcome.delay is None:
                self._inflight.counts.dead += 1
                tell(job, outcome)
            else:
                retried += 1
                tell(job, outcome)
                self._inflight.due_in(outcome.delay)
        self._inflight.counts.retried += retried
        _log_batch(batch, retried, "to try again", started)

    async def _committed(self, jobs: Sequence[Job]) -> set[str]:
        """Returns which of these jobs of one owner are in the history as its own changes."""
        return {row[0] for row in await self._link.repeat(*commit.finished_by(jobs))}


def _log_batch(batch: Sequence[tuple[Job, Any]], count: int, what: str, started: float) -> None:
    if count and log.isEnabledFor(logging.INFO):
        stages = ", ".join(sorted({job.stage.queue for job, _ in batch}))
        took = round((time.monotonic() - started) * 1000, 1)
        extra = {"stages": stages, what.replace(" ", "_"): count, "ms": took}
        log.info("%s: %s %s in %.1f ms", stages, count, what, took, extra=extra)
