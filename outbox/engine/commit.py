"""Builds the statements that end attempts: commit, put back, release, and mark a handler's transaction.

They change nothing for a job that is no longer held. See sql/queries/commit.sql.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import psycopg

from ..database import session, statements
from ..database.link import PLANNING, idle_ms
from ..database.statements import array, text_array
from ..database.steps import Statement
from ..definition.reasons import traceback_of
from .job import Failed, Finished, Job, Trouble, actor, fence
from .pacing import SLACK

SQL = statements.load("commit")

ANOTHER_TRANSACTION, NOT_HELD = "OB009", "OB010"
"""SQLSTATEs that refuse a handler's transaction: it ended the one that it was given, or its job is no longer held."""

LOCKED = frozenset({"55P03"})
"""SQLSTATE of a statement that has exceeded its lock timeout."""

LOCK_WAIT = 0.5
"""Seconds that a batch waits for other sessions' locks. It doesn't wait for locked workflows: it leaves them out."""

LOCK_WAIT_ALONE = 0.1
"""Seconds that an outcome waits when it is committed alone. It is tried again and again."""

LOCK_WAIT_IN_TRANSACTION = 2.0
"""Seconds that the end of a handler's transaction waits. It keeps its connection and its own locks for that time."""

_PLAN = session.restore(PLANNING)


def finish(
    jobs: Sequence[tuple[Job, Finished]], *, marked: bool = False, wait: float | None = None
) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that commits finished jobs of one owner; its rows are the workflows still held.

    Workflows that another session has locked are left out, unless `wait` (seconds) waits for them. With `marked` the
    statement fails (ANOTHER_TRANSACTION, NOT_HELD) unless this is still the transaction that was marked for the first
    job, and all the jobs are held.
    """
    sent = [(job.workflow_id, message) for job, outcome in jobs for message in outcome.messages]
    waits = [
        {**outcome.wait, "id": job.workflow_id, "version": job.version + 1}
        for job, outcome in jobs
        if outcome.wait is not None
    ]
    return SQL["jobs_finish_if_held"], {
        **fence([job for job, _ in jobs]),
        "actor": actor(jobs[0][0].owner),
        "claim": _claim(jobs[0][0]) if marked else "",
        **_patience(LOCK_WAIT_IN_TRANSACTION if marked and wait is None else wait),
        "versions": array(job.version for job, _ in jobs),
        "waits": json.dumps(waits) if waits else "",
        "statuses": text_array(outcome.status for _, outcome in jobs),
        "data": text_array(outcome.data for _, outcome in jobs),
        "senders": array(workflow_id for workflow_id, _ in sent),
        "topics": text_array(message.topic for _, message in sent),
        "keys": text_array(message.key for _, message in sent),
        "payloads": text_array(message.payload for _, message in sent),
        "headers": text_array(message.headers for _, message in sent),
    }


def fail(jobs: Sequence[tuple[Job, Failed]], *, wait: float | None = None) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that puts back failed jobs of one owner or marks them dead; `wait` as in `finish`."""
    return SQL["jobs_fail_if_held"], {
        **fence([job for job, _ in jobs]),
        **_patience(wait),
        "now": None,
        "delays": array("NULL" if outcome.delay is None else outcome.delay for _, outcome in jobs),
        "in_row": array(outcome.in_row for _, outcome in jobs),
        "errors": text_array(outcome.error for _, outcome in jobs),
        "tracebacks": text_array(_traceback(outcome) for _, outcome in jobs),
    }


def release(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that releases jobs of one owner that have not run. Their attempts aren't counted."""
    return SQL["jobs_give_back"], fence(jobs)


def put_back(jobs: Sequence[Job], trouble: Trouble) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that puts jobs of one owner back for `trouble`; its rows are workflows and their delay (s).

    A delay of None: it is held as before. It was put back too often, or, as the third column says, no deployed stage
    takes it.
    """
    return SQL["jobs_put_back"], {
        **fence(jobs),
        "reason": trouble.reason,
        "first": trouble.first,
        "next": trouble.next,
        "longest": trouble.longest,
        "most": trouble.most,
        "avoid": trouble.avoid,
        "if_routed": trouble.if_routed,
    }


def still_held(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Returns the query that tells which jobs their owner still holds, and whether their data is unchanged."""
    return SQL["jobs_held"], {**fence(jobs), "versions": array(job.version for job in jobs)}


def sessions_blocking(pid: int) -> tuple[bytes, dict[str, Any]]:
    """Returns the query that finds the sessions that block another one."""
    return SQL["sessions_blocking"], {"pid": pid}


def return_start_times(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that gives back the start times of jobs of one stage that were not started."""
    return SQL["start_times_return"], {
        "pipeline": jobs[0].stage.pipeline,
        "stage": jobs[0].stage.name,
        "ids": array(job.workflow_id for job in jobs),
        "start_times": array(job.start_time for job in jobs),
        "slack": SLACK,
    }


def finished_by(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Returns the query that finds which of these jobs are in the history, for when the answer to a commit was lost."""
    return SQL["jobs_finished_by"], {
        "actor": actor(jobs[0].owner),
        "ids": array(job.workflow_id for job in jobs),
        "attempts": array(job.attempt for job in jobs),
        "versions": array(job.version for job in jobs),
    }


def mark_transaction(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that marks a handler's transaction as this attempt's own."""
    return SQL["transaction_mark"], {
        "claim": _claim(job),
        "actor": actor(job.owner),
        "worker": job.owner,
        "idle_ms": idle_ms(job.stage.timeout),
    }


def opening(
    conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], job: Job, cleaned: Statement, lock_wait: float
) -> bytes:
    """Returns what opens a further handler's turn in the transaction that was marked for `job`.

    These are several statements, so their values are bound here. `cleaned`: the statement that forgets what a handler
    has left. Waits for locks are bounded by `lock_wait` seconds.
    """
    _, mark = mark_transaction(job)
    _, settings = cleaned
    cursor = psycopg.ClientCursor if isinstance(conn, psycopg.Connection) else psycopg.AsyncClientCursor
    params = {**settings, **mark, "lock_ms": round(1000 * lock_wait)}
    return cursor(conn).mogrify(SQL["turn_opens"], params).encode("ascii")  # type: ignore[arg-type]


def plan_transaction() -> tuple[bytes, dict[str, Any]]:
    """Returns the statement that sets the engine's planner settings for the rest of a handler's transaction.

    The statement that ends the transaction costs Postgres twice as much if each of its steps is planned again.
    """
    return _PLAN


def _traceback(outcome: Failed) -> str | None:
    """Returns the traceback of a dead job's last attempt. Those of earlier attempts are only in the log."""
    if outcome.delay is not None or outcome.raised is None:
        return None
    text = traceback_of(outcome.raised)
    return text.encode("ascii", "backslashreplace").decode() if outcome.plain else text


def _patience(wait: float | None) -> dict[str, Any]:
    return {"wait": wait is not None, "lock_ms": round(1000 * (LOCK_WAIT if wait is None else wait))}


def _claim(job: Job) -> str:
    return f"{job.owner}:{job.workflow_id}:{job.attempt}"
