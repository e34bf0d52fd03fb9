"""How attempts end in the database: the statements that commit, put back and give back, and that mark a transaction.

A job that is no longer held contributes nothing. See sql/queries/commit.sql.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..database import session, statements
from ..database.link import PLANNING, idle_ms
from ..database.statements import array, text_array
from ..definition.reasons import traceback_of
from .job import Failed, Finished, Job, actor, fence
from .pacing import SLACK

SQL = statements.load("commit")

ANOTHER_TRANSACTION, NOT_HELD = "OB009", "OB010"
"""SQLSTATEs of a handler's transaction that is refused: it ended the one that it was given, or lost its job."""

_PLAN = session.restore(PLANNING)


def finish(jobs: Sequence[tuple[Job, Finished]], *, marked: bool = False) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that commits finished jobs of one owner; its rows are the workflows still held.

    `marked`: it is an error (ANOTHER_TRANSACTION, NOT_HELD) unless this is still the transaction that was marked for
    the first of these jobs, and all of them are held.
    """
    sent = [(job.workflow_id, message) for job, outcome in jobs for message in outcome.messages]
    waits = [{**outcome.wait, "id": job.workflow_id} for job, outcome in jobs if outcome.wait is not None]
    return SQL["jobs_finish_if_held"], {
        **fence([job for job, _ in jobs]),
        "actor": actor(jobs[0][0].owner),
        "claim": _claim(jobs[0][0]) if marked else "",
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


def fail(jobs: Sequence[tuple[Job, Failed]]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that puts failed jobs of one owner back or lays them down as dead."""
    return SQL["jobs_fail_if_held"], {
        **fence([job for job, _ in jobs]),
        "now": None,
        "delays": array("NULL" if outcome.delay is None else outcome.delay for _, outcome in jobs),
        "errors": text_array(outcome.error for _, outcome in jobs),
        "tracebacks": text_array(_traceback(outcome) for _, outcome in jobs),
    }


def release(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that frees jobs of one owner which have not run; no attempt is burnt."""
    return SQL["jobs_give_back"], fence(jobs)


def return_start_times(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that takes back the start times of jobs of one stage that were not started."""
    return SQL["start_times_return"], {
        "pipeline": jobs[0].stage.pipeline,
        "stage": jobs[0].stage.name,
        "ids": array(job.workflow_id for job in jobs),
        "start_times": array(job.start_time for job in jobs),
        "slack": SLACK,
    }


def finished_by(jobs: Sequence[Job]) -> tuple[bytes, dict[str, Any]]:
    """Return the question which of these are in the history, asked when the answer to a commit was lost."""
    return SQL["jobs_finished_by"], {
        "actor": actor(jobs[0].owner),
        "ids": array(job.workflow_id for job in jobs),
        "attempts": array(job.attempt for job in jobs),
        "versions": array(job.version for job in jobs),
    }


def mark_transaction(job: Job) -> tuple[bytes, dict[str, Any]]:
    """Return the statement that makes a handler's transaction known as this attempt's own."""
    return SQL["transaction_mark"], {
        "claim": _claim(job),
        "actor": actor(job.owner),
        "worker": job.owner,
        "idle_ms": idle_ms(job.stage.timeout),
    }


def plan_transaction() -> tuple[bytes, dict[str, Any]]:
    """Return the statement after which a handler's session is, for the rest of its transaction, as the engine needs it.

    The rest is planned as in the engine's own sessions: planned again for each step, the statement that ends it costs
    Postgres twice as much.
    """
    return _PLAN


def _traceback(outcome: Failed) -> str | None:
    """Returns what a dead job keeps of its last attempt: the others are in the log only."""
    if outcome.delay is not None or outcome.raised is None:
        return None
    text = traceback_of(outcome.raised)
    return text.encode("ascii", "backslashreplace").decode() if outcome.plain else text


def _claim(job: Job) -> str:
    return f"{job.owner}:{job.workflow_id}:{job.attempt}"
