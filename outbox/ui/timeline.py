"""Tells the story of a workflow: what `look.show` has of it, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from ..operations.look import Row

NOTHING: Any = object()
"""An event has no document; None is one."""


class Event(NamedTuple):
    """Something that happened to a workflow. `who` did it, by the role `login`; `text` is a reason or an error."""

    at: Any
    kind: str
    title: str
    who: str | None = None
    login: str | None = None
    text: str | None = None
    document: Any = NOTHING

    @property
    def has_document(self) -> bool:
        return self.document is not NOTHING


def tell(found: Row) -> list[Event]:
    """Returns the events of a workflow, the first one first."""
    events = [*_changes(found), *_answers(found), *_jobs(found), *_others(found), *_actions(found)]
    # A time that Python can't hold is text, and stands at the end.
    return sorted(events, key=lambda event: (not isinstance(event.at, datetime), event.at))


def _changes(found: Row) -> Iterator[Event]:
    for row in found["history"]:
        from_, to = row["from_status"], row["to_status"]
        title = f"started in {to}" if from_ is None else f"{from_} → {to}"
        if row["stage"]:
            title += f", by stage {row['stage']}, attempt {row['attempt']}"
        yield Event(row["at"], "change", title, row["actor"], row["login"], row["reason"])


def _answers(found: Row) -> Iterator[Event]:
    for row in found["approvals"]:
        whom = f", for {row['assignee']}" if row["assignee"] else ""
        yield Event(row["asked_at"], "question", f"asked{whom}: {row['question']}", row["asked_by"])
        for vote in row["voted"]:
            yield Event(
                row["ended_at"] or row["asked_at"],
                "vote",
                f"vote for {vote['option']}",
                vote["person"],
                vote["cast_by"],
            )
        if row["ended_at"] is not None:
            how = row["decision"] if row["ended"] == "decided" else row["ended"]
            title = f"answered {how or row['to_status']}: {row['question']}"
            edited = NOTHING if row["edited"] is None else row["edited"]
            yield Event(row["ended_at"], "answer", title, row["decided_by"], row["login"], row["reason"], edited)


def _jobs(found: Row) -> Iterator[Event]:
    job, dead = found["job"], found["dead_job"]
    if job and job["error"]:
        title = f"attempt {job['attempt']} of {job['stage']} failed"
        yield Event(job["run_at"], "error", f"{title}, and is tried again", text=job["error"])
    if job and job["claimed_at"]:
        yield Event(
            job["claimed_at"], "attempt", f"attempt {job['attempt']} of {job['stage']} runs", f"worker-{job['owner']}"
        )
    if dead:
        title = f"dead after {dead['attempts']} attempts of {dead['stage']}"
        yield Event(dead["died_at"], "error", title, text=dead["traceback"] or dead["error"])


def _others(found: Row) -> Iterator[Event]:
    for row in found["checkpoints"]:
        name = f"checkpoint {row['key']} of {row['stage']}, attempt {row['attempt']}"
        yield Event(row["made_at"], "checkpoint", name, document=row["result"])
    for row in found["effects"]:
        name = f"effect {row['name']} of {row['stage']}, attempt {row['attempt']}: {row['state']}"
        known = NOTHING if row["state"] != "done" else row["result"]
        yield Event(row["started_at"], "effect", name, row["known_by"], text=row["error"], document=known)
    for row in found["signals"]:
        taken = "" if row["taken_at"] else ", not taken yet"
        title = f"signal {row['name']}{taken}"
        yield Event(row["sent_at"], "signal", title, row["sent_by"], row["login"], document=row["payload"])
    for row in found["messages"]:
        yield Event(row["created_at"], "message", f"message {row['topic']}", document=row["payload"])


def _actions(found: Row) -> Iterator[Event]:
    for row in found["actions"]:
        yield Event(
            row["at"], "action", f"{row['action']} of {row['stage']}", row["actor"], row["login"], row["reason"]
        )
