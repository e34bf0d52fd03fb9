"""Runs a handler in a transaction (steps 3 and 4), which commits with the status change or not at all.

A stage with `batch` calls its handler once with several jobs. With `share`, the handlers of several jobs take turns in
one transaction: the first as if it were alone, each later one behind a savepoint (see database/turns.py). What the
first has done can't be rolled back by itself, so the others follow only if it has finished.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import psycopg

from ..database import killpoints, turns
from ..database.steps import Call, Statement
from ..database.user_transaction import Begin, Commit, Steps, TakeTurn
from ..definition.run import Run
from ..errors import HandlerError
from ..process.service import is_cancelled
from . import commit
from .handle import begin, handle_async, handle_sync
from .job import Failed, Finished, Job, Missed, Outcome, PutBack, fail, refused
from .sharing import LOCK_WAIT, LONGEST

_ENDED = (
    "ended the transaction that it was given: what it wrote may be committed without the status change. "
    "Don't commit or roll back on run.connection; use run.connection.transaction()"
)

Connection = psycopg.AsyncConnection[Any] | psycopg.Connection[Any]

OTHERS_TURN = 1.0
"""Seconds beyond its timeout that a handler has before the jobs whose turns are over stop waiting for its end."""


class Committed(NamedTuple):
    """All jobs were committed with their outcomes."""

    finished: list[tuple[Job, Finished]]


class Failures(NamedTuple):
    """Nothing was committed, and each job has failed."""

    failed: list[tuple[Job, Failed]]


class RolledBackTogether(NamedTuple):
    """Nothing was committed, and any of several jobs may be the reason: each is to be tried alone."""


class Unanswered(NamedTuple):
    """The answer to the commit of several jobs was lost: all of them were committed, or none."""

    finished: list[tuple[Job, Finished]]


class NotHeld(NamedTuple):
    """Nothing was committed, because the job is no longer held, or its workflow was changed."""


class HeldUp(NamedTuple):
    """Nothing was committed, because another session holds a row that the commit needs."""


Ended = Committed | Failures | RolledBackTogether | Unanswered | NotHeld | HeldUp | PutBack | Missed


class TookTurns(NamedTuple):
    """Several jobs took turns: how it has ended for which of them, and which are still to begin.

    `cut`: the others would have made it too long. `conflict`: a wait for a lock was given up. `odd`: why no others may
    share a transaction with such handlers.
    """

    ended: list[tuple[list[Job], Ended]]
    left: list[Job]
    cut: bool = False
    conflict: bool = False
    odd: str = ""


def attempt(conn: Connection, jobs: Sequence[Job]) -> Steps[Ended]:
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
        began = time.monotonic()
        try:
            outcomes = yield Call(partial(handle_async if stage.is_async else handle_sync, runs))
        finally:
            _end(runs)
        jobs[0].took = time.monotonic() - began
        outcomes = [_settled(run, outcome) for run, outcome in zip(runs, outcomes, strict=True)]
    if Missed() in outcomes:
        return Missed()
    finished = [(job, it) for job, it in zip(jobs, outcomes, strict=False) if isinstance(it, Finished)]
    if len(finished) < len(jobs):
        return _unfinished(jobs[0], outcomes[0]) if len(jobs) == 1 else RolledBackTogether()
    return (yield from _commit(conn, finished))


def take_turns(conn: Connection, jobs: Sequence[Job], cleaned: Statement) -> Steps[TookTurns]:
    """Calls the handler with each of these jobs while the transaction stays short, and commits what has finished.

    One that raises is rolled back to its savepoint. What the jobs do to each other costs none of them an attempt: if a
    turn ends in a conflict of locks, or the commit is refused, those concerned are to be tried alone. `cleaned` is the
    statement that forgets what a handler has left in the session. Raises as `attempt` does.
    """
    began = time.monotonic()
    ((*_, isolation),) = yield Begin(commit.mark_transaction(jobs[0]))
    for job in jobs:
        job.task = None  # until its turn, and in the commit: what ends one must not end the others
    opening = commit.opening(conn, jobs[0], cleaned, LOCK_WAIT)
    finished: list[tuple[Job, Finished]] = []
    ended: list[tuple[list[Job], Ended]] = []
    odd, conflict, cut, left = "", False, False, list(jobs)
    if isolation != "read committed":
        odd = f"their isolation level is {isolation}"
    while left and not (finished and (odd or conflict or cut)):
        job = left.pop(0)
        run = begin(job, conn)
        if not isinstance(run, Run):
            ended.append(([job], _unfinished(job, run)))
            continue
        first = not finished
        _wait_for_turn([each for each, _ in finished], job)
        try:
            called, turn = yield TakeTurn(_called(run), None if first else opening)
        finally:
            _end([run])
        outcome: Any = _settled(run, called)
        odd = odd or (f"a handler sends {turn.odd}" if turn.odd else "")
        done = isinstance(outcome, Finished) and job.lost is None
        if done and (first or turn.is_well):
            finished.append((job, outcome))
            if not turn.is_well:
                break  # it has ended the transaction, or left an error in it: its commit will say so
        elif first:  # nothing but its own work is lost
            ended.append(([job], _unfinished(job, outcome)))
            break
        elif turn.broken:
            ended.append(([*(each for each, _ in finished), job], RolledBackTogether()))
            finished = []
            break
        else:
            if turn.opened:
                yield turns.UNDO
            conflict = turn.conflict
            both = done or turn.refused or turn.conflict  # it may be that only the others were in its way
            ended.append(([job], RolledBackTogether() if both else _unfinished(job, outcome)))
        taken = len(jobs) - len(left)
        cut = (time.monotonic() - began) * (taken + 1) / taken > LONGEST
    if finished:
        together = [job for job, _ in finished]
        result: Ended = RolledBackTogether()
        if all(job.lost is None for job in together):
            _wait_for_commit(together)
            result = yield from _commit(conn, finished, wait=LOCK_WAIT if together[1:] else None)
            conflict = conflict or (isinstance(result, HeldUp) and bool(together[1:]))
            if together[1:] and not isinstance(result, Committed):
                result = Unanswered(finished) if conn.closed else RolledBackTogether()
        ended.append((together, result))
    return TookTurns(ended, left, cut, conflict, odd)


def _commit(conn: Connection, finished: list[tuple[Job, Finished]], wait: float | None = None) -> Steps[Ended]:
    """Writes what has finished and commits. With `wait` a wait for a lock takes so many seconds at most."""
    killpoints.passing("K3")
    if finished[0][0].stage.is_async:
        killpoints.sending("K4")
    try:
        yield Commit((commit.plan_transaction(), commit.finish(finished, marked=True, wait=wait)))
    except psycopg.Error as error:
        if wait is not None and error.sqlstate in turns.CONFLICTS:
            return HeldUp()
        return _refused(conn, [job for job, _ in finished], error)
    return Committed(finished)


def _unfinished(job: Job, outcome: Outcome) -> Ended:
    """Returns how a job has ended whose handler was not called, has failed, or was taken away meanwhile."""
    match outcome:
        case Failed():
            return Failures([(job, outcome)])
        case PutBack():
            return outcome
        case _:
            return Missed()


def _end(runs: Sequence[Run[Any]]) -> None:
    """Takes the connection from the handler, which has returned."""
    for run in runs:
        if run._transaction is not None:
            run._transaction.end()


def _settled(run: Run[Any], outcome: Outcome) -> Outcome:
    """Returns the outcome with what is to be called after the commit; a failure if the run refuses to be committed."""
    transaction = run._transaction
    if transaction is None or not isinstance(outcome, Finished):
        return outcome
    if transaction.refused is not None:
        return fail(run._job, HandlerError(transaction.refused))
    outcome.hooks = transaction.hooks
    return outcome


def _called(run: Run[Any]) -> Any:
    """Returns the call of the handler with one run. What it sets in its context is not there for the next one."""
    if run._job.stage.is_async:
        return partial(_in_task, run)
    return partial(_in_context, run)


def _in_context(run: Run[Any]) -> Outcome:
    outcomes: list[Outcome] = contextvars.copy_context().run(handle_sync, [run])
    return outcomes[0]


async def _in_task(run: Run[Any]) -> Outcome:
    """Calls an async handler in a task, so that a timeout cancels this handler and nothing else."""
    job = run._job
    task = job.task = asyncio.create_task(handle_async([run]))
    outcome: Outcome
    try:
        (outcome,) = await task
    except asyncio.CancelledError:
        if is_cancelled():
            raise  # all of them
        outcome = fail(job, RuntimeError("the handler was cancelled"))
    finally:
        job.task = None
    return outcome


def _wait_for_turn(earlier: Sequence[Job], job: Job) -> None:
    """Has jobs whose turns are over wait for the handler of another one, for some longer than it may take."""
    for each in earlier:
        each.turn_over, each.deadline = True, time.monotonic() + job.stage.timeout + OTHERS_TURN


def _wait_for_commit(jobs: Sequence[Job]) -> None:
    """Gives the commit of several jobs the time of an attempt, as a single one's has, and has a timeout cancel it."""
    task = asyncio.current_task() if jobs[0].stage.is_async else None
    for job in jobs:
        job.turn_over, job.deadline, job.task = False, time.monotonic() + job.stage.timeout, task


def _refused(conn: Connection, jobs: Sequence[Job], error: psycopg.Error) -> Ended:
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
