"""Lets time pass in a test: not the clock moves, but what is to come comes earlier."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, overload

from ..client.execute import Steps, execute
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..database.session import connect
from ..definition.waits.times import check_time

SQL = statements.load("moving")

TABLES = (
    "move_jobs", "move_approvals", "move_approval_links", "move_delegations", "move_schedules", "move_limits",
    "move_partition_rates", "move_parked_messages",
)  # fmt: skip
"""The statements, each of which moves the times of a table."""

MOVED = {
    "jobs.run_at", "jobs.deadline", "approvals.deadline", "approvals.remind_at", "approvals.escalate_at",
    "approval_links.until", "delegations.until", "schedules.next_at", "schedules.retry_at", "limits.next_at",
    "partition_rates.next_at", "parked_messages.waits_until",
}  # fmt: skip
"""The columns with times to come. A test compares these with the schema."""

_PAST = "tells what has been"
_AGE = "is an age, by which old rows are deleted: only the calendar makes them old"

NOT_MOVED = {
    "actions.at": _PAST,
    "approval_links.made_at": _PAST,
    "approval_links.used_at": _PAST,
    "approval_votes.voted_at": _PAST,
    "approvals.asked_at": _PAST,
    "approvals.ended_at": _PAST,
    "approvals.escalated_at": _PAST,
    "blob_parts.loose_since": _AGE,
    "blob_uses.kept_until": _AGE,
    "blob_uses.since": _AGE,
    "checkpoints.made_at": _AGE,
    "dead_counts.at": _PAST,
    "dead_jobs.died_at": _PAST,
    "delegations.since": _PAST,
    "delivery_attempts.at": _AGE,
    "effects.ended_at": _PAST,
    "effects.started_at": _PAST,
    "error_kinds.first_at": _PAST,
    "error_kinds.last_at": _PAST,
    "inbox.received_at": _AGE,
    "jobs.claimed_at": _PAST,
    "messages.created_at": _PAST,
    "parked_deliveries.parked_at": _PAST,
    "parked_messages.created_at": _PAST,
    "parked_messages.parked_at": _PAST,
    "pauses.paused_at": _PAST,
    "pipelines.deployed_at": _PAST,
    "relays.updated_at": "is the beat of a process, which lives by the clock",
    "resting.since": _PAST,
    "schedules.last_at": _PAST,
    "schedules.ran_at": _PAST,
    "schema_migrations.applied_at": _PAST,
    "signals.sent_at": _PAST,
    "signals.taken_at": _PAST,
    "state_changes.at": _PAST,
    "status_counts.at": _PAST,
    "status_flow.minute": _PAST,
    "waits.since": _PAST,
    "workers.beat_at": "is the beat of a process, which lives by the clock",
    "workers.started_at": _PAST,
    "workflow_states.created_at": _PAST,
    "workflow_states.updated_at": _PAST,
}
"""The other times, and why they stay."""


@overload
def advance(where: AsyncConn, by: timedelta) -> Coroutine[Any, Any, dict[str, int]]: ...
@overload
def advance(where: SyncConn | str, by: timedelta) -> dict[str, int]: ...
def advance(where: Any, by: timedelta) -> Any:
    """Lets time pass: all that is to come in the database comes earlier by `by`, and the next drain does what is due.

    Moves back-off and other delays, deadlines, reminders, escalations, the ends of delegations and of links, schedules
    and start times of rates. What has been stays: history, ages, and the beats of processes. Returns how many times of
    each column have moved, without zeros.

    `where` is a DSN, or a connection of any kind, in whose transaction it happens; await it on an async one. The role
    must own the schema. A tick that has come earlier has a time (`tick.at`) that is earlier, too.
    """
    check_time("by", by, timedelta(0))
    if isinstance(where, str):
        with connect(where, "advance", pooled=True) as conn:
            return execute(conn, _advance(by), whole=True)
    return execute(where, _advance(by), whole=True)


def _advance(by: timedelta) -> Steps[dict[str, int]]:
    moved: dict[str, int] = {}
    for name in TABLES:
        for column, count in (yield SQL[name], {"by": by.total_seconds()}):
            if count:
                moved[column] = count
    return moved
