"""Runs a handler in a transaction of its own (steps 3 and 4), which commits with the status change or not at all.

A stage with `batch` has several jobs in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import psycopg

from ..database import killpoints
from ..database.steps import Call
from ..database.user_transaction import Begin, Commit, Steps
from ..errors import HandlerError
from . import commit
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Missed, Outcome, PutBack, fail, refused
from .run import Run

_ENDED = (
    "ended the transaction that it was given: what it wrote may be committed without the status change. "
    "Don't commit or roll back on run.connection; use run.connection.transaction()"
)


class Committed(NamedTuple):
    """All jobs were committed with their outcomes."""

    finished: list[tuple[Job, Finished]]


class Failures(NamedTuple):
    """Nothing was committed, and each job has failed."""

    failed: list[tuple[Job, Failed]]


class RolledBackTogether(NamedTuple):
    """Nothing was committed, and any of several jobs may be the reason: each is to be tried alone."""


class NotHeld(NamedTuple):
    """Nothing was committed, because the job is no longer held, or its workflow was changed."""


class HeldUp(NamedTuple):
    """Nothing was committed, because another session holds a row that the commit needs."""


Ended = Committed | Failures | RolledBackTogether | NotHeld | HeldUp | PutBack | Missed


def attempt(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], jobs: Sequence[Job]) -> Steps[Ended]:
    """Calls the handler with these jobs and commits what it returns: all of them or none.

    Raises psycopg.Error if the handler was not called. A commit whose answer is lost counts as failed; if it did
    commit, the database refuses to put the jobs back.

    It takes two round trips besides the handler's own: one to begin the transaction, and one to end it.
    """
    stage = jobs[0].stage
    yield Begin(commit.mark_transaction(jobs[0]))
    begun = [begin(job, conn) for job in jobs]
    runs = [run for run in begun if isinstance(run, Run)]
    outcomes: list[Outcome]
    if len(runs) < len(jobs):
        outcomes = [run for run in begun if not isinstance(run, Run)]  # for data that doesn't fit the model
    else:
        outcomes = yield Call(partial(handle_async if stage.is_async else handle_sync, runs))
    if Missed() in outcomes:
        return Missed()
    if len(jobs) == 1 and isinstance(outcomes[0], PutBack):
        return outcomes[0]
    finished = [(job, it) for job, it in zip(jobs, outcomes, strict=False) if isinstance(it, Finished)]
    if len(finished) < len(jobs):
        failed = [(job, it) for job, it in zip(jobs, outcomes, strict=False) if isinstance(it, Failed)]
        return Failures(failed) if len(jobs) == 1 else RolledBackTogether()
    killpoints.passing("K3")
    if stage.is_async:
        killpoints.sending("K4")
    try:
        yield Commit((commit.plan_transaction(), commit.finish(finished, marked=True)))
    except psycopg.Error as error:
        return _refused(conn, jobs, error)
    return Committed(finished)


def _refused(
    conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], jobs: Sequence[Job], error: psycopg.Error
) -> Ended:
    """Returns what the failed commit of a transaction means for its jobs."""
    if error.sqlstate == commit.ANOTHER_TRANSACTION:
        told = HandlerError(f"stage {jobs[0].stage.queue} {_ENDED}")
        return Failures([(job, fail(job, told)) for job in jobs])
    if len(jobs) > 1 and not conn.closed:
        return RolledBackTogether()
    if error.sqlstate == commit.NOT_HELD:
        return NotHeld()
    if error.sqlstate in commit.LOCKED:
        return HeldUp()
    outcomes = [refused(job, error) for job in jobs]
    if put_back := next((it for it in outcomes if isinstance(it, PutBack)), None):
        return put_back
    return Failures([(job, it) for job, it in zip(jobs, outcomes, strict=True) if isinstance(it, Failed)])
