"""Step 3 and 4 in one: a handler in a transaction of its own, which ends with the status change or not at all.

A stage with `batch` has several jobs in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import psycopg

from ..database import killpoints
from ..database.link import reclaim
from ..errors import HandlerError
from . import commit
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Missed, Outcome, fail
from .run import Run

_ENDED = (
    "ended the transaction that it was given: what it wrote may be committed without the status change. "
    "Don't commit or roll back on run.connection; use run.connection.transaction()"
)


async def run_async(conn: psycopg.AsyncConnection[Any], jobs: Sequence[Job]) -> Sequence[Outcome | None]:
    """Run an async handler on these jobs and commit. Returns an outcome each, None for a job that was no longer held.

    All are committed or none. Of several that were rolled back nothing is known of any (an empty list): each is to
    be tried alone. Raises psycopg.Error if the handler was not begun. A commit whose answer is lost counts as failed:
    putting the jobs back is refused if it was committed after all.

    Two round trips beside the handler's own: what begins the transaction is one, and what ends it.
    """
    ended: Sequence[Outcome | None] = []
    begun = False
    try:
        async with AsyncExitStack() as block:
            reclaim(conn)
            async with conn.pipeline():
                transaction = await block.enter_async_context(psycopg.AsyncTransaction(conn))
                await conn.execute(*commit.mark_transaction(jobs[0]))
            begun = True
            runs, unfit = _begin(jobs, conn)
            ended = unfit or await handle_async(runs)
            if finished := _finished(jobs, ended):
                reclaim(conn)
                killpoints.passing("K3")
                killpoints.sending("K4")
                async with conn.pipeline():
                    await conn.execute(*commit.plan_transaction())
                    await conn.execute(*commit.finish(finished, marked=True))
                    await block.aclose()  # COMMIT, which an error before it turns into nothing
                return ended
            raise psycopg.Rollback(transaction)
    except psycopg.Rollback:
        pass  # the transaction's own; or the connection is gone, and with it the transaction
    except (psycopg.Error, HandlerError) as error:
        if not begun:
            raise
        return _refused(conn, jobs, error)
    finally:
        with suppress(psycopg.Error):
            await conn.rollback()  # an end that was refused or cancelled; else there is nothing to do
    return ended if len(jobs) == 1 or Missed() in ended else []


def run_sync(conn: psycopg.Connection[Any], jobs: Sequence[Job]) -> Sequence[Outcome | None]:
    """The same for a sync handler, in the calling thread."""
    ended: Sequence[Outcome | None] = []
    begun = False
    try:
        with ExitStack() as block:
            reclaim(conn)
            with conn.pipeline():
                transaction = block.enter_context(psycopg.Transaction(conn))
                conn.execute(*commit.mark_transaction(jobs[0]))
            begun = True
            runs, unfit = _begin(jobs, conn)
            ended = unfit or handle_sync(runs)
            if finished := _finished(jobs, ended):
                reclaim(conn)
                killpoints.passing("K3")
                with conn.pipeline():
                    conn.execute(*commit.plan_transaction())
                    conn.execute(*commit.finish(finished, marked=True))
                    block.close()
                return ended
            raise psycopg.Rollback(transaction)
    except psycopg.Rollback:
        pass  # the transaction's own; or the connection is gone, and with it the transaction
    except (psycopg.Error, HandlerError) as error:
        if not begun:
            raise
        return _refused(conn, jobs, error)
    finally:
        with suppress(psycopg.Error):
            conn.rollback()
    return ended if len(jobs) == 1 or Missed() in ended else []


def _begin(jobs: Sequence[Job], conn: Any) -> tuple[list[Run[Any]], list[Outcome]]:
    """Return what the handler is given, and instead of it the outcomes of jobs whose data don't fit."""
    begun = [begin(job, conn) for job in jobs]
    return [run for run in begun if isinstance(run, Run)], [run for run in begun if isinstance(run, Failed)]


def _finished(jobs: Sequence[Job], outcomes: Sequence[Outcome | None]) -> list[tuple[Job, Finished]]:
    """Return jobs and outcomes if each of them is to be committed, else nothing."""
    finished = [(job, outcome) for job, outcome in zip(jobs, outcomes, strict=False) if isinstance(outcome, Finished)]
    return finished if len(finished) == len(jobs) else []


def _refused(
    conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], jobs: Sequence[Job], error: Exception
) -> Sequence[Outcome | None]:
    """Say what an error of the transaction means: that one of several is refused, or that all have failed."""
    while isinstance(error, psycopg.errors.PipelineAborted) and isinstance(error.__context__, psycopg.Error):
        error = error.__context__  # that what was sent behind the culprit was not run is psycopg's last word at times
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state == commit.ANOTHER_TRANSACTION:
        return [fail(job, HandlerError(f"stage {job.stage.queue} {_ENDED}")) for job in jobs]
    if len(jobs) > 1 and isinstance(error, psycopg.Error) and not conn.closed:
        return []
    return [None] if state == commit.NOT_HELD else [fail(job, error) for job in jobs]
