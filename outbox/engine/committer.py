"""Commits outcomes in batches, with one statement that changes nothing for a job that is no longer held.

A statement can be repeated: the jobs that its first run ended are no longer held in the second.

An outcome whose rows another session holds in an open transaction is left out of its batch: it is held up. It is
retried periodically on a separate link, so that it doesn't delay the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from ..database import killpoints
from ..database.link import Link
from ..definition.failed_attempts import FailedAttempt, Reports
from ..errors import HandlerError
from ..texts import printable
from . import commit
from .batch import BATCH, Batch
from .holders import WAIT, Holders
from .inflight import InFlight
from .job import Failed, Finished, Job, PutBack, Trouble, refused
from .job_log import tell
from .release import Releaser

log = logging.getLogger("outbox.worker")

COMMITS = 3
"""Batches committed at once. With only one, Postgres would idle while Python works and while the disk writes."""

LINGER = 0.002
"""Seconds that an outcome waits for others to join its batch while handlers run."""

HELD_UP_FIRST, HELD_UP_LONGEST = 0.05, 1.0
"""Seconds until held-up outcomes are retried. The delay doubles each time that none of them could be committed."""

UNSTORABLE = Trouble("its failure can't be stored", first=1.0, next=2.0, most=2**31 - 1)
"""Why a job is put back if the database refuses to store its failure with any text: a user's trigger or constraint."""


class Committer:
    """Runs the commit loops: takes outcomes, and repeats each batch until the database has answered.

    Each batch takes a link. While it is on its way, a full batch may leave on the next link. Held-up outcomes use
    `patient`, a link that is opened only when it is needed.
    """

    def __init__(
        self,
        links: Sequence[Link],
        patient: Link,
        inflight: InFlight,
        releaser: Releaser,
        reports: Reports | None = None,
    ) -> None:
        self._link = links[0]
        self._free = list(reversed(links))
        self._patient = patient
        self._holders = Holders(links[0])
        self._inflight = inflight
        self._releaser = releaser
        self._reports = reports

    async def run(self) -> None:
        """Commits outcomes until it is cancelled."""
        inflight = self._inflight
        async with asyncio.TaskGroup() as batches:
            while True:
                await inflight.something_ended.wait()
                inflight.something_ended.clear()
                if not inflight.committing and inflight.ended < BATCH and inflight.handlers_run():
                    await asyncio.sleep(LINGER)
                # A batch that isn't full waits for those on their way: it grows, and more outcomes cost little more.
                while self._free and inflight.ended >= (BATCH if inflight.committing else 1):
                    batches.create_task(self._commit(self._free.pop(), inflight.take_batch()))

    async def run_held_up(self) -> None:
        """Retries held-up outcomes until it is cancelled."""
        inflight, delay = self._inflight, HELD_UP_FIRST
        while True:
            await inflight.something_held_up.wait()
            await asyncio.sleep(delay)
            before = inflight.held_up
            # A round takes each outcome once: those that are still held up queue behind those that were not tried.
            for _ in range(-(-before // BATCH)):
                batch = inflight.take_held_up()
                await self._commit_held_up(batch)
                inflight.committed_again(batch)
            if inflight.held_up and self._holders.due():
                await self._say_who_holds()
            delay = HELD_UP_FIRST if inflight.held_up < before else min(2 * delay, HELD_UP_LONGEST)

    async def close(self) -> None:
        await self._patient.close()

    async def _commit(self, link: Link, batch: Batch) -> None:
        for owner in {job.owner for job, _ in batch.finished}:
            await self._finish(link, [item for item in batch.finished if item[0].owner == owner])
        for owner in {job.owner for job, _ in batch.failed}:
            await self._fail(link, [item for item in batch.failed if item[0].owner == owner])
        self._free.append(link)
        self._inflight.committed(batch)

    async def _commit_held_up(self, batch: Batch) -> None:
        """Tries a held-up batch: together without waiting for locks, and one by one those that have to wait."""
        link, inflight = self._patient, self._inflight
        together = [item for item in batch.finished if not item[0].alone]
        for owner in {job.owner for job, _ in together}:
            await self._finish(link, [item for item in together if item[0].owner == owner])
        alone = [item for item in batch.finished if item[0].alone]
        while alone:
            item, *alone = alone
            if not await self._finish(link, [item], wait=commit.LOCK_WAIT_ALONE):
                break  # the others are tried in the next rounds, because each may wait for the whole timeout
        inflight.not_tried(alone)
        for owner in {job.owner for job, _ in batch.failed}:
            await self._fail(link, [item for item in batch.failed if item[0].owner == owner])

    async def _say_who_holds(self) -> None:
        """Lets one held-up outcome wait for its lock, so that Postgres can tell who holds it."""
        batch = self._inflight.take_first_held_up()
        await self._holders.name(self._patient, batch.jobs[0], self._wait_for(batch), self._inflight.held_up)
        self._inflight.committed_again(batch)

    async def _wait_for(self, batch: Batch) -> None:
        """Retries one held-up outcome, and waits for the lock long enough to ask who holds it."""
        if batch.finished:
            await self._finish(self._patient, batch.finished, wait=WAIT)
        else:
            await self._fail(self._patient, batch.failed, wait=WAIT)

    async def _finish(self, link: Link, batch: list[tuple[Job, Finished]], *, wait: float | None = None) -> bool:
        """Commits finished jobs of one owner; returns whether none of them is held up."""
        started = time.monotonic()
        connections = link.connections
        killpoints.passing("K3")
        killpoints.sending("K4")
        try:
            rows = await link.repeat(*commit.finish(batch, wait=wait), answers=commit.LOCKED)
        except psycopg.errors.LockNotAvailable:
            # A row other than the workflow is locked, such as its parent. Trying the jobs one by one shows which one's.
            for job, _ in batch:
                job.alone = job.alone or wait is None
            self._inflight.hold_up(batch)
            return False
        except Exception as error:
            # The database refuses something in the batch. Alone, each job is committed or fails with its own error.
            if len(batch) > 1:
                return all([await self._finish(link, [item], wait=wait) for item in batch])
            ((job, _),) = batch
            match refused(job, error):
                case PutBack(trouble):
                    await self._releaser.put_back([job], trouble)
                case Failed() as failure:
                    await self._fail(link, [(job, failure)])
            return True
        killpoints.passing("K5")
        held = {row[0] for row in rows}
        if len(held) < len(batch) and link.connections != connections:
            # An answer was lost: what the first try has committed is done, not lost.
            held |= await self._releaser.committed([job for job, _ in batch if job.workflow_id not in held])
        missing = [item for item in batch if item[0].workflow_id not in held]
        self._inflight.done(batch, len(held))
        _log_batch(batch, len(held), "done", started)
        if not missing:
            return True
        answers = dict(await link.repeat(*commit.still_held([job for job, _ in missing])))
        held_up = [item for item in missing if answers.get(item[0].workflow_id)]
        self._inflight.hold_up(held_up)
        if others := [job for job, _ in missing if not answers.get(job.workflow_id)]:
            await self._releaser.not_held(others)
        return not held_up

    async def _fail(self, link: Link, batch: list[tuple[Job, Failed]], *, wait: float | None = None) -> None:
        """Puts failed jobs of one owner back, or marks them dead."""
        started = time.monotonic()
        try:
            held = {row[0] for row in await link.repeat(*commit.fail(batch, wait=wait), answers=commit.LOCKED)}
        except psycopg.errors.LockNotAvailable:
            await self._fail_alone(link, batch)
            return
        except Exception as error:
            await self._fail_refused(link, batch, error)
            return
        missing = [job for job, _ in batch if job.workflow_id not in held]
        # The answer to a handler's own COMMIT may have been lost: then the attempt looked failed, but is done.
        done = await self._releaser.committed(missing) if missing else set()
        answers = dict(await link.repeat(*commit.still_held(missing))) if missing else {}
        held_up = [item for item in batch if item[0].workflow_id in answers and item[0].workflow_id not in done]
        self._inflight.hold_up(failed=held_up)
        retried = 0
        for job, outcome in batch:
            if job.workflow_id in done:
                self._inflight.counts.done += 1
                where = f"{job.stage.queue} {printable(job.entity_id)}"
                log.info("%s: done after all, though its commit was not answered", where)
            elif job.workflow_id in answers:
                continue  # held up
            elif job.workflow_id not in held:
                self._inflight.counts.lost += 1
            elif outcome.delay is None:
                self._inflight.counts.dead += 1
                self._tell(job, outcome)
            else:
                retried += 1
                self._tell(job, outcome)
                self._inflight.wakeups.due_in(outcome.delay)
        self._inflight.counts.retried += retried
        _log_batch(batch, retried, "to try again", started)

    def _tell(self, job: Job, outcome: Failed) -> None:
        tell(job, outcome)
        if job.stage.hooks.on_error and self._reports is not None:
            failed = FailedAttempt(job.stage.pipeline, job.stage.name, job.entity_id, job.attempt, outcome.delay)
            self._reports.tell(job.stage.hooks.on_error, outcome.raised or HandlerError(outcome.error), failed)

    async def _fail_alone(self, link: Link, batch: list[tuple[Job, Failed]]) -> None:
        """Puts jobs back one by one, because a row that one of them needs was locked for too long."""
        if len(batch) == 1:
            self._inflight.hold_up(failed=batch)
            return
        for item in batch:
            await self._fail(link, [item])

    async def _fail_refused(self, link: Link, batch: list[tuple[Job, Failed]], error: Exception) -> None:
        """Puts jobs back one by one, because the database refused one of them. A job refused alone gets plain ASCII."""
        if len(batch) > 1:
            for item in batch:
                await self._fail(link, [item])
            return
        ((job, outcome),) = batch
        if not outcome.plain:
            await self._fail(link, [(job, outcome.as_plain())])
            return
        log.error("%s %s: can't be put back: %s", job.stage.queue, printable(job.entity_id), printable(str(error)))
        try:
            await self._releaser.put_back([job], UNSTORABLE)
        except Exception:
            self._inflight.hold_up(failed=batch)


def _log_batch(batch: Sequence[tuple[Job, Any]], count: int, what: str, started: float) -> None:
    if count and log.isEnabledFor(logging.INFO):
        stages = ", ".join(sorted({job.stage.queue for job, _ in batch}))
        took = round((time.monotonic() - started) * 1000, 1)
        extra = {"stages": stages, what.replace(" ", "_"): count, "ms": took}
        log.info("%s: %s %s in %.1f ms", stages, count, what, took, extra=extra)
