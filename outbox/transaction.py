"""Step 3 and 4 in one: a handler in a transaction of its own, which ends with the status change or not at all."""

from __future__ import annotations

from typing import Any

import psycopg

from . import commit, killpoints
from .errors import HandlerError
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Outcome, fail
from .link import reclaim

# Idle in the transaction for longer than the stage's timeout plus this many seconds, the session is ended by
# Postgres: a process that froze holding row locks must not block those who take over.
IDLE_GRACE = 5.0


async def run_async(conn: psycopg.AsyncConnection[Any], job: Job) -> Outcome | None:
    """Run an async handler and commit. Returns its outcome, None if the job was no longer held (rolled back).

    Raises psycopg.Error if the handler was not begun. A commit whose answer is lost counts as failed: putting the
    job back is refused if it was committed after all.
    """
    outcome: Outcome | None = None
    begun = False
    try:
        async with conn.transaction() as transaction:
            reclaim(conn)
            await conn.execute(*commit.mark_transaction(job, job.stage.timeout + IDLE_GRACE))
            begun = True
            run = begin(job, conn)
            outcome = run if isinstance(run, Failed) else await handle_async(run)
            if isinstance(outcome, Finished):
                reclaim(conn)
                mark = await (await conn.execute(commit.SQL["transaction_mark_read"])).fetchone()
                _require_same(job, mark)
                killpoints.passing("K3")
                if await (await conn.execute(*commit.finish([(job, outcome)]))).fetchone():
                    killpoints.sending("K4")
                    return outcome
                outcome = None
            _roll_back(transaction)
    except psycopg.Rollback:
        return outcome  # the connection is gone, and with it the transaction
    except (psycopg.Error, HandlerError) as error:
        if not begun:
            raise
        return fail(job, error)
    return outcome


def run_sync(conn: psycopg.Connection[Any], job: Job) -> Outcome | None:
    """The same for a sync handler, in the calling thread."""
    outcome: Outcome | None = None
    begun = False
    try:
        with conn.transaction() as transaction:
            reclaim(conn)
            conn.execute(*commit.mark_transaction(job, job.stage.timeout + IDLE_GRACE))
            begun = True
            run = begin(job, conn)
            outcome = run if isinstance(run, Failed) else handle_sync(run)
            if isinstance(outcome, Finished):
                reclaim(conn)
                killpoints.passing("K3")
                _require_same(job, conn.execute(commit.SQL["transaction_mark_read"]).fetchone())
                if conn.execute(*commit.finish([(job, outcome)])).fetchone():
                    return outcome
                outcome = None
            _roll_back(transaction)
    except psycopg.Rollback:
        return outcome  # the connection is gone, and with it the transaction
    except (psycopg.Error, HandlerError) as error:
        if not begun:
            raise
        return fail(job, error)
    return outcome


def _roll_back(transaction: Any) -> None:
    raise psycopg.Rollback(transaction)  # which ends at the block of this transaction


def _require_same(job: Job, row: Any) -> None:
    if row is None or not commit.is_marked(job, row[0]):
        raise HandlerError(
            f"stage {job.stage.queue} ended the transaction that it was given: what it wrote may be committed "
            "without the status change. Don't commit or roll back on run.connection; use run.connection.transaction()"
        )
