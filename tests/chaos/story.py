"""Tells what happened to one workflow, in order of time, as all witnesses saw it, and how long recovery took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from .history import History, Transaction, Write
from .replay import WORKER

SHOWN = {
    "workflow_states": ("current_status", "version"),
    "state_changes": ("from_status", "to_status", "version", "actor", "stage", "attempt"),
    "jobs": ("stage", "status", "owner", "attempt", "due", "run_at", "error"),
    "dead_jobs": ("stage", "attempts", "error"),
    "messages": ("message_id", "topic"),
    "outside": ("stage", "attempt", "key"),
    "inside": ("stage", "attempt", "found"),
    "effects": ("name", "call", "attempt", "state", "known_by", "error"),
    "approvals": ("status", "question", "effect", "decision", "decided_by", "ended"),
}
"""The informative columns, by table."""


def story(history: History, subject: str) -> str:
    """Returns everything that was seen of a workflow, or of a message's, in order of time, for a person to read."""
    id_, entity, messages = _about(history, subject)
    events = sorted(_events(history, id_, entity, messages), key=lambda event: event[0])
    title = f"The story of {subject}" + (f" ({entity})" if entity else "")
    if not events:
        return "\n".join([title, "  nobody saw anything", *history.not_drained])
    began = events[0][0]
    since = datetime.fromtimestamp(began, UTC)
    lines = [f"{title}, seconds since {since:%Y-%m-%d %H:%M:%S.%f} UTC"]
    lines += [f"  {at - began:9.3f}  {who:12} {what}" for at, who, what in events]
    return "\n".join(lines)


def _about(history: History, subject: str) -> tuple[str, str | None, set[str]]:
    """Returns the workflow that an anomaly is about, its entity, and the ids of its messages."""
    id_ = subject
    for transaction in history.transactions:
        for write in transaction.writes:
            row = write.row
            if write.table == "messages" and row["message_id"] == subject and row["workflow_id"] is not None:
                id_ = row["workflow_id"]
            elif write.table == "workflow_states" and write.kind == "insert" and row["entity_id"] == subject:
                id_ = str(row["id"])
    entity = next((workflow.entity for workflow in history.workflows if workflow.id == id_), None)
    messages = {subject}
    for transaction in history.transactions:
        for write in transaction.writes:
            if write.table == "messages" and write.row["workflow_id"] == id_:
                messages.add(str(write.row["message_id"]))
            elif write.table == "workflow_states" and write.row["id"] == id_:
                entity = write.row.get("entity_id", entity)
    if entity is None and any(call.entity == subject for call in history.calls):
        entity = subject
    return id_, entity, messages


def _events(history: History, id_: str, entity: str | None, messages: set[str]) -> Iterator[tuple[float, str, str]]:
    for call in history.calls:
        if call.entity == entity:
            asked = f"{call.client} asks: {call.kind} {call.entity} {call.to_status or ''}".rstrip()
            yield call.began, "client", asked
            ended = call.ended if call.ended != float("inf") else call.began
            yield ended, "client", f"{call.client} is told: {call.outcome}, {call.said}"
    for transaction in history.transactions:
        for write in transaction.writes:
            if _of(write, id_, messages):
                yield transaction.at, "log", f"transaction {transaction.xid}: {_told(write)}"
    for change in history.changes:
        if change.workflow_id == id_:
            by = f"{change.actor}" + (f", {change.stage}, attempt {change.attempt}" if change.stage else "")
            yield change.at, "audit trail", f"{change.version}: {change.from_status} to {change.to_status} by {by}"
    for effect in history.effects:
        if effect.kind == "consumer" and effect.message_id in messages:
            yield effect.at, "world", f"a consumer's effect for message {effect.message_id}"
        elif effect.workflow_id == id_:
            key = f", key {effect.key}" if effect.key else ""
            yield effect.at, "world", f"effect {effect.kind} of {effect.stage}, attempt {effect.attempt}{key}"
    for entry in history.book:
        if entry.key.startswith(f"{id_}:"):
            yield entry.at, "bank", f"{entry.what} {entry.key}, for {entry.by}"
    for arrival in history.arrivals:
        if arrival.message_id in messages:
            yield arrival.at, "queue", f"{arrival.topic} of {arrival.key} arrives: {arrival.wire_id}"
    end = history.ended
    for workflow in history.workflows:
        if workflow.id == id_:
            yield end, "the end", f"workflow {workflow.entity}: {workflow.status}, version {workflow.version}"
    for job in history.jobs:
        if job.workflow_id == id_:
            yield end, "the end", f"job of {job.stage}, attempt {job.attempt}, held by {job.owner}"
    for dead in history.dead_jobs:
        if dead.workflow_id == id_:
            yield end, "the end", f"dead job of {dead.stage} after {dead.attempts} attempts: {dead.error}"
    for found, reason in history.parked:
        if found in messages:
            yield end, "the end", f"message {found} is parked: {reason}"
    for found in history.inbox:
        if found in messages:
            yield end, "the end", f"message {found} is in the inbox"


def _of(write: Write, id_: str, messages: set[str]) -> bool:
    row = write.row
    if write.table == "workflow_states":
        return row["id"] == id_
    return row.get("workflow_id") == id_ or row.get("message_id") in messages


def _told(write: Write) -> str:
    columns = SHOWN.get(write.table, tuple(write.row))
    shown = " ".join(f"{name}={write.row[name]}" for name in columns if write.row.get(name) is not None)
    return f"{write.kind} {write.table} {shown}".rstrip()


@dataclass(slots=True)
class _Hold:
    """An attempt held by a worker, and when the next attempt began."""

    claimed: float
    ended: float = float("inf")
    following: float | None = None


def recoveries(history: History, kills: list[tuple[str, float]]) -> list[float]:
    """Returns, for each job that a worker held when it was killed, the seconds until its next attempt was claimed."""
    holds = _holds(history.transactions)
    found = []
    for worker, at in kills:
        for hold in holds.get(worker, ()):
            if hold.claimed <= at < hold.ended and hold.following is not None:
                found.append(hold.following - at)
    return found


def _holds(transactions: list[Transaction]) -> dict[str, list[_Hold]]:
    """Returns what each worker held."""
    holds: dict[str, list[_Hold]] = defaultdict(list)
    last: dict[str, tuple[str | None, _Hold]] = {}  # by workflow: who held its job last, if it is the same job
    for transaction in transactions:
        for write in transaction.writes:
            if write.table != "jobs" or write.kind == "insert":
                continue
            id_, owner = str(write.row["workflow_id"]), write.row.get("owner")
            holder, hold = last.get(id_, (None, None))
            if write.kind == "update" and owner == holder:
                continue
            if hold is not None and holder is not None:
                hold.ended = transaction.at
            if write.kind == "delete":
                last.pop(id_, None)
            elif owner is None and hold is not None:
                last[id_] = None, hold
            elif owner is not None:
                if hold is not None:
                    hold.following = transaction.at
                last[id_] = owner, _Hold(transaction.at)
                holds[WORKER + owner].append(last[id_][1])
    return holds
