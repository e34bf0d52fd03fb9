"""Runs attempts of stages with `transaction=True`, each on a pooled connection, and passes on how each has ended."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from functools import partial

import psycopg

from ..database import user_transaction
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import first_line
from ..database.pool import Pool
from ..database.session import clean
from ..database.user_transaction import Clean, Steps
from ..definition.step_transaction import call_after_commit, call_after_commit_sync
from ..errors import HandlerError
from ..process.threads import NoThread, Threads
from . import transaction
from .handlers import named, where
from .inflight import InFlight
from .job import Finished, Job, Missed, PutBack, fail
from .lane import Lane
from .release import HELD_UP, Releaser

log = logging.getLogger("outbox.worker")

LOG_EVERY = 0.1
"""Seconds of commits in handlers' own transactions that share one log line."""


class Transactional:
    """Runs handlers in transactions that commit with the status change, and keeps their connections and threads."""

    def __init__(
        self,
        dsn: Dsn,
        lanes: Iterable[Lane],
        inflight: InFlight,
        releaser: Releaser,
        group: ConnectionGroup,
        *,
        pooled: bool,
    ) -> None:
        self._inflight = inflight
        self._releaser = releaser
        self._threads = {lane: Threads(lane.stage.queue) for lane in lanes if not lane.stage.is_async}
        self._pool = Pool(dsn, "handler", group, pooled=pooled)
        self._clean = Clean(clean("handler", pooled=pooled), inside=pooled)
        self._committed: Counter[str] = Counter()  # by stage, not logged yet

    async def close(self) -> None:
        self._log_committed()
        for threads in self._threads.values():
            threads.close()
        await self._pool.close()

    async def run(self, lane: Lane, jobs: list[Job]) -> None:
        """Runs the attempt of one job, of a batch, or of several jobs that take turns, and passes on its end.

        Raises NoThread if there is none for a plain function.
        """
        try:
            if lane.stage.is_async:
                async with self._pool.connection() as conn:
                    ended = await user_transaction.run_async(conn, self._steps(conn, lane, jobs), self._clean)
            else:
                ended = await self._threads[lane].call(partial(self._run_in_thread, lane, jobs))
        except (psycopg.Error, OSError) as error:
            await self._releaser.not_started(jobs, f"its transaction was not begun: {first_line(error)}")
            return
        if isinstance(ended, transaction.TookTurns):
            ended = ended._replace(ended=[(some, await self._known(some, how)) for some, how in ended.ended])
            await self._took_turns(lane, jobs, ended)
            all_ended = [how for _, how in ended.ended]
        else:
            if lane.sharing is not None:
                lane.sharing.had_own(jobs[0].took, lane.attempts, waiting=bool(lane.waiting))
            await self._ended(lane, jobs, ended)
            all_ended = [ended]
        await self._call_hooks(lane, all_ended)

    def _run_in_thread(self, lane: Lane, jobs: list[Job]) -> transaction.Ended | transaction.TookTurns:
        with self._pool.sync_connection() as conn:
            return user_transaction.run(conn, self._steps(conn, lane, jobs), self._clean)

    def _steps(
        self, conn: transaction.Connection, lane: Lane, jobs: list[Job]
    ) -> Steps[transaction.Ended | transaction.TookTurns]:
        if lane.sharing is not None and len(jobs) > 1:
            return transaction.take_turns(conn, jobs, self._clean.statement)
        return transaction.attempt(conn, jobs)

    async def _took_turns(self, lane: Lane, jobs: list[Job], took: transaction.TookTurns) -> None:
        sharing = lane.sharing
        assert sharing is not None
        for job in jobs:
            job.task = None
        if took.odd:
            sharing.never(took.odd)
        if took.conflict:
            sharing.conflicted()
        waiting = bool(lane.waiting or took.left)
        sharing.ended(len(jobs) - len(took.left), cut=took.cut and bool(took.left), waiting=waiting)
        # First what waits for nothing; last what starts again, perhaps while this one waits.
        for some, how in sorted(took.ended, key=_order):
            await self._ended(lane, some, how)
        lane.again(took.left)

    async def _known(self, jobs: list[Job], ended: transaction.Ended) -> transaction.Ended:
        """Returns how it has ended, also if the answer to the commit was lost."""
        if not isinstance(ended, transaction.Unanswered):
            return ended
        return (
            transaction.Committed(ended.finished)
            if await self._releaser.committed(jobs)
            else transaction.RolledBackTogether()
        )

    async def _ended(self, lane: Lane, jobs: list[Job], ended: transaction.Ended) -> None:
        match ended:
            case transaction.Committed(finished):
                self._done(finished)
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
                self._releaser.missed(lane, jobs)

    async def _call_hooks(self, lane: Lane, ended: Iterable[transaction.Ended]) -> None:
        """Calls what handlers want called after their commits, in their slots."""
        for job, hooks in [
            (job, outcome.hooks)
            for how in ended
            if isinstance(how, transaction.Committed)
            for job, outcome in how.finished
            if outcome.hooks
        ]:
            job.deadline = float("inf")  # the attempt is over: it can't time out any more
            if lane.stage.is_async:
                await call_after_commit(hooks, where(job), lane.stage.timeout, log)
            else:
                try:
                    await self._threads[lane].call(partial(call_after_commit_sync, hooks, where(job), log))
                except NoThread as error:
                    log.error("%s: committed, but there is no thread for what was to be called after it: %s",
                              where(job), error)  # fmt: skip

    def _done(self, finished: list[tuple[Job, Finished]]) -> None:
        self._inflight.committed_alone(finished)
        if not self._committed:
            asyncio.get_running_loop().call_later(LOG_EVERY, self._log_committed)
        for job, _ in finished:
            self._committed[job.stage.queue] += 1

    def _log_committed(self) -> None:
        for queue, count in self._committed.items():
            log.info("%s: %s done in transactions of their own", queue, count, extra={"stages": queue, "done": count})
        self._committed.clear()


def _order(ended: tuple[list[Job], transaction.Ended]) -> int:
    match ended[1]:
        case transaction.RolledBackTogether():
            return 2
        case transaction.NotHeld() | transaction.HeldUp() | PutBack():
            return 1
        case _:
            return 0
