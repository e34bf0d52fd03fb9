"""Tells the story of a workflow: what `look.show` has of it, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ..operations.look import Row
from .differences import Difference, differences
from .stored import NOTHING as NOTHING_HIDDEN
from .stored import Hiding

NOTHING: Any = object()
"""An event has no document; None is one."""


class Event(NamedTuple):
    """Something that happened to a workflow. `who` did it, by the role `login`; `text` is a reason or an error.

    `changed` is what is known to have changed in its data, and `more` whether that is not all.
    """

    at: Any
    kind: str
    title: str
    who: str | None = None
    login: str | None = None
    text: str | None = None
    document: Any = NOTHING
    changed: Sequence[Difference] = ()
    more: bool = False

    @property
    def has_document(self) -> bool:
        return self.document is not NOTHING


def tell(found: Row, known: Sequence[Row] = (), hiding: Hiding = NOTHING_HIDDEN) -> list[Event]:
    """Returns the events of a workflow, the first one first. `known` is its data at earlier times."""
    events = [
        *_changes(found), *_answers(found), *_jobs(found), *_others(found), *_actions(found),
        *_data(found, known, hiding),
    ]  # fmt: skip
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
            place = "" if vote["cast_by"] == vote["person"] else f", in the place of {vote['person']}"
            title = f"vote for {vote['option']}{place}"
            yield Event(_time(vote["voted_at"]), "vote", title, vote["cast_by"], vote["login"], vote["reason"])
        if row["ended_at"] is not None:
            how = row["decision"] if row["ended"] == "decided" else row["ended"]
            title = f"answered {how or row['to_status']}: {row['question']}"
            edited = NOTHING if row["edited"] is None else row["edited"]
            yield Event(row["ended_at"], "answer", title, row["decided_by"], row["login"], row["reason"], edited)


def _time(text: str) -> datetime | str:
    """Returns the time in a document, or its text if Python can't hold that time."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


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


def _data(found: Row, known: Sequence[Row], hiding: Hiding) -> Iterator[Event]:
    """Yields what has changed between the times at which the data is known: most handlers leave no older version."""
    last, since = None, None
    for row in known:
        if row["asked"] is not None and row["own_data"] and row["edited"] is not None:
            yield from _compared(
                "what was asked about, as the answer has it", row["asked"], row["edited"], row["ended_at"], hiding
            )
        if row["own_data"]:
            continue
        for data, at in ((row["asked"], row["asked_at"]), (row["edited"], row["ended_at"])):
            if data is None:
                continue
            if last is not None:
                yield from _compared(_SINCE if at == row["asked_at"] else _EDITED, last, data, at, hiding)
            last, since = data, at
    if since is not None:
        yield from _compared(_SINCE, last, found["metadata"], found["updated_at"], hiding)


_SINCE, _EDITED = "the data has changed since then", "the data, as the answer has it"


def _compared(title: str, before: Any, after: Any, at: Any, hiding: Hiding) -> Iterator[Event]:
    changed, more = differences(before, after, hiding)
    if changed:
        yield Event(at, "data", title, changed=changed, more=more)
