"""Lists workflows page by page, and reads one with its history, on a sync or an async connection.

The lists themselves are the SQL function `outbox.find`, and one workflow is a row of the view `outbox.workflows`: SQL
clients read the same. Nothing here counts, and no page reads more than a bounded number of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from .. import documents, texts
from ..checks import MAX_DELAY, MAX_NAME, as_delay
from ..database import statements
from ..documents import EntityId
from ..errors import InvalidInput
from .execute import Steps, execute

SQL = statements.load("lists")
Data = TypeVar("Data")
Loaded = TypeVar("Loaded", covariant=True)

MOST = 10_000
"""The longest page, in workflows: the function `outbox.find` refuses more."""

WAITS = ("approval", "signal", "children", "deadline", "timer", "worker", "change")
"""What workflows wait for. A signal may be followed by its name."""


class Loader(Protocol[Loaded]):
    """The part of a Pipeline that lists use."""

    @property
    def name(self) -> str: ...

    def load(self, text: str) -> Loaded:
        """Returns data from stored JSON text."""


@dataclass(frozen=True)
class Workflow(Generic[Data]):
    """A workflow, where it stands, and what it waits for.

    `state` is finished, dead, running, ready, scheduled (its job is due later) or waiting (no stage takes its status).
    `since` is when it came to its status. `stage` and `attempt` are those of its job. `error` is why the last attempt
    failed, and `kind` is the same without ids and numbers. `waits_for` is approval, signal NAME, children, deadline,
    timer, worker, change (of its status, by anybody), or None if it is dead or finished. `until` is when its wait ends
    by itself.
    """

    id: UUID
    pipeline: str
    entity_id: str
    status: str
    version: int
    created_at: datetime
    updated_at: datetime
    state: str
    since: datetime
    stage: str | None
    attempt: int | None
    error: str | None
    kind: str | None
    waits_for: str | None
    assignee: str | None
    until: datetime | None
    text: str = field(repr=False)
    """Its data as it is stored, as JSON."""
    load: Callable[[str], Data] = field(repr=False, compare=False)

    @cached_property
    def data(self) -> Data:
        """Its data, upgraded and validated when it is first asked for: data that no code can read spoils no list.

        None if it was erased. Raises what `Pipeline.load` raises.
        """
        return self.load(self.text)


@dataclass(frozen=True, slots=True)
class Page(Generic[Data]):
    """A page of a list. `after` leads to the next one; it is None at the end of the list.

    `bounded`: the page ends early, because the list has looked at as many workflows as it may for one page. There may
    be more behind `after`.
    """

    workflows: tuple[Workflow[Data], ...]
    after: str | None
    bounded: bool

    def __iter__(self) -> Iterator[Workflow[Data]]:
        return iter(self.workflows)

    def __len__(self) -> int:
        return len(self.workflows)


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of a workflow's status. `actor` is who made it, as they call themselves, and `login` is their role."""

    from_status: str | None
    to_status: str
    version: int
    actor: str
    login: str | None
    reason: str | None
    stage: str | None
    attempt: int | None
    at: datetime


_BY_TYPE: dict[str, Callable[[str], Any]] = {"UUID": UUID, "datetime": datetime.fromisoformat}
_READ: list[Callable[[Any], Any]] = [
    _BY_TYPE.get(str(each.type).partition(" ")[0], lambda value: value) for each in fields(Workflow)
]
"""How to read each field from what JSON says of it."""


def find(
    pipeline: Loader[Data], conn: Any, *, status: str | None, older: float | timedelta | None, assignee: str | None,
    entity: str | None, waits_for: str | None, dead: bool, error: str | None, limit: int, after: str | None,
) -> Any:  # fmt: skip
    """Lists workflows. See Pipeline.find."""
    asked = checked(
        pipeline=pipeline.name, status=status, older=older, assignee=assignee, entity=entity, waits_for=waits_for,
        dead=dead, error=error, limit=limit, after=after,
    )  # fmt: skip
    return execute(conn, _page(pipeline, asked))


def get(pipeline: Loader[Data], conn: Any, entity_id: EntityId) -> Any:
    """Returns a workflow. See Pipeline.get."""
    entity_id = documents.entity(entity_id)
    return execute(conn, one(pipeline, entity_id))


def history(pipeline: Loader[Data], conn: Any, entity_id: EntityId, limit: int) -> Any:
    """Returns the history of a workflow. See Pipeline.history."""
    entity_id = documents.entity(entity_id)
    check_limit(limit)
    return execute(conn, _history(pipeline.name, entity_id, limit))


def checked(
    *, pipeline: str | None, status: str | None, older: float | timedelta | None, assignee: str | None,
    entity: str | None, waits_for: str | None, dead: bool, error: str | None, limit: int, after: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the parameters of a page. Raises InvalidInput for a value that no list can have."""
    for what, value, longest in (
        ("pipeline", pipeline, MAX_NAME), ("status", status, MAX_NAME), ("assignee", assignee, MAX_NAME),
        ("entity", entity, documents.MAX_ENTITY_ID), ("waits_for", waits_for, MAX_NAME),
        ("error", error, texts.MAX_ERROR), ("after", after, 10 * documents.MAX_ENTITY_ID),
    ):  # fmt: skip
        texts.check_optional(value, what, longest)
    if waits_for is not None and waits_for not in WAITS and not re.match("signal .", waits_for):
        raise InvalidInput("waits_for", f"must be one of {', '.join(WAITS)}, or 'signal NAME', not {waits_for!r}")
    seconds = None if older is None else as_delay(older)
    if older is not None and seconds is None:
        raise InvalidInput("older", f"must be a time from 0 to {MAX_DELAY:g} seconds, not {texts.shown(older)}")
    check_limit(limit)
    return {
        "pipeline": pipeline, "status": status, "older": seconds, "assignee": assignee, "entity": entity,
        "waits_for": waits_for, "dead": bool(dead), "error": error, "after": after, "limit": limit,
    }  # fmt: skip


def rows(asked: dict[str, Any], *, data: bool = True) -> Steps[tuple[list[tuple[Any, ...]], str | None, bool]]:
    """Returns the rows of a page, the cursor of the next one (None at the end), and whether it ends at the bound.

    Without `data`, no workflow's data is read, which may be large, and None stands in its place.
    """
    page = {**asked, "most": asked["limit"] + 1, "data": data}
    found = [json.loads(text) for (text,) in (yield SQL["workflows_find"], page)]
    *_, bare = found or [None]
    if bare is not None and bare[0] is None:
        return [_row(row[:-1]) for row in found[:-1]], str(bare[-1]), True
    kept = found[: asked["limit"]]
    return [_row(row[:-1]) for row in kept], str(kept[-1][-1]) if len(found) > len(kept) else None, False


def _page(pipeline: Loader[Data], asked: dict[str, Any]) -> Steps[Page[Data]]:
    found, after, bounded = yield from rows(asked)
    return Page(tuple(Workflow(*(*row, pipeline.load)) for row in found), after, bounded)


def one(pipeline: Loader[Data], entity_id: str) -> Steps[Workflow[Data] | None]:
    """Does what `get` does, as steps."""
    found = yield SQL["workflow_get"], {"pipeline": pipeline.name, "entity": entity_id}
    return Workflow(*(*_row(json.loads(found[0][0])), pipeline.load)) if found else None


def _history(pipeline: str, entity_id: str, limit: int) -> Steps[list[StateChange]]:
    found = yield SQL["history_of"], {"pipeline": pipeline, "entity": entity_id, "limit": limit}
    told: list[list[Any]] = [json.loads(text) for (text,) in found]
    return [StateChange(*[*row[:-1], datetime.fromisoformat(row[-1])]) for row in told]


def _row(told: Sequence[Any]) -> tuple[Any, ...]:
    """Returns what JSON says of a workflow as its fields are: ids and times."""
    return tuple(value if value is None else _READ[place](value) for place, value in enumerate(told))


def check_limit(limit: object) -> int:
    """Returns the limit of a list. Raises InvalidInput if no list can have it."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MOST:
        raise InvalidInput("limit", f"must be a whole number from 1 to {MOST:,}, not {texts.shown(limit)}")
    return limit
