"""Finds what was submitted and published, and fails with what is there instead."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from .. import documents, texts
from ..client import lists
from ..client.execute import Steps, execute
from ..client.lists import StateChange, Workflow
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..definition.pipeline import Pipeline
from ..documents import EntityId
from .attempts import Published

SQL = statements.load("found")
Data = TypeVar("Data")
Found = TypeVar("Found")

SHOWN = 20
"""How many of the others a failure lists: more than a test has, and fewer than a screen."""


@overload
def submitted(
    conn: AsyncConn,
    pipeline: Pipeline[Data],
    *,
    entity_id: EntityId | None = None,
    status: str | None = None,
    **data: Any,
) -> Coroutine[Any, Any, list[Workflow[Data]]]: ...
@overload
def submitted(
    conn: SyncConn,
    pipeline: Pipeline[Data],
    *,
    entity_id: EntityId | None = None,
    status: str | None = None,
    **data: Any,
) -> list[Workflow[Data]]: ...
def submitted(
    conn: Any, pipeline: Pipeline[Any], *, entity_id: EntityId | None = None, status: str | None = None, **data: Any
) -> Any:
    """Returns the workflows of a pipeline that match, in the order in which they were submitted.

    `data` are fields of the workflow's data with their values. Await it on an async connection.
    """
    return execute(conn, _submitted(pipeline, _wanted(entity_id=_entity(entity_id), status=status), data, None))


@overload
def assert_submitted(
    conn: AsyncConn, pipeline: Pipeline[Data], *, count: int | None = None, entity_id: EntityId | None = None,
    status: str | None = None, **data: Any,
) -> Coroutine[Any, Any, list[Workflow[Data]]]: ...  # fmt: skip
@overload
def assert_submitted(
    conn: SyncConn, pipeline: Pipeline[Data], *, count: int | None = None, entity_id: EntityId | None = None,
    status: str | None = None, **data: Any,
) -> list[Workflow[Data]]: ...  # fmt: skip
def assert_submitted(
    conn: Any, pipeline: Pipeline[Any], *, count: int | None = None, entity_id: EntityId | None = None,
    status: str | None = None, **data: Any,
) -> Any:  # fmt: skip
    """Does what `submitted` does, and fails unless `count` match; without `count`, unless any does.

    The AssertionError lists the workflows of the pipeline that are there.
    """
    check = _check("workflow", "workflows", count)
    return execute(conn, _submitted(pipeline, _wanted(entity_id=_entity(entity_id), status=status), data, check))


@overload
def published(
    conn: AsyncConn, topic: str | None = None, *, key: str | None = None, **payload: Any
) -> Coroutine[Any, Any, list[Published]]: ...
@overload
def published(
    conn: SyncConn, topic: str | None = None, *, key: str | None = None, **payload: Any
) -> list[Published]: ...
def published(conn: Any, topic: str | None = None, *, key: str | None = None, **payload: Any) -> Any:
    """Returns the messages that match, of one topic or of all, in the order in which they were written.

    `payload` are fields of the message's payload with their values. Await it on an async connection. Messages that all
    relays have sent are emptied from the log after a while.
    """
    return execute(conn, _published(topic, _wanted(key=key), payload, None))


@overload
def assert_published(
    conn: AsyncConn, topic: str | None = None, *, count: int | None = None, key: str | None = None, **payload: Any
) -> Coroutine[Any, Any, list[Published]]: ...
@overload
def assert_published(
    conn: SyncConn, topic: str | None = None, *, count: int | None = None, key: str | None = None, **payload: Any
) -> list[Published]: ...
def assert_published(
    conn: Any, topic: str | None = None, *, count: int | None = None, key: str | None = None, **payload: Any
) -> Any:
    """Does what `published` does, and fails unless `count` match; without `count`, unless any does.

    The AssertionError lists the messages that are there, of any topic.
    """
    return execute(conn, _published(topic, _wanted(key=key), payload, _check("message", "messages", count)))


@overload
def history(
    conn: AsyncConn, pipeline: Pipeline[Any], entity_id: EntityId
) -> Coroutine[Any, Any, list[StateChange]]: ...
@overload
def history(conn: SyncConn, pipeline: Pipeline[Any], entity_id: EntityId) -> list[StateChange]: ...
def history(conn: Any, pipeline: Pipeline[Any], entity_id: EntityId) -> Any:
    """Returns the changes of an entity's workflow in their order, as `Pipeline.history` does."""
    return lists.history(pipeline, conn, entity_id, lists.MOST)


Check = Callable[[Sequence[Any], Sequence[Any], Mapping[str, Any], Callable[[Any], str]], None]


def _entity(entity_id: EntityId | None) -> str | None:
    return None if entity_id is None else documents.entity(entity_id)


def _wanted(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _submitted(
    pipeline: Pipeline[Any], fields: dict[str, Any], data: dict[str, Any], check: Check | None
) -> Steps[list[Workflow[Any]]]:
    every: list[Workflow[Any]] = []
    after: str | None = None
    while True:
        asked = lists.checked(
            pipeline=pipeline.name, status=None, older=None, assignee=None, entity=None, waits_for=None, dead=False,
            error=None, limit=lists.MOST, after=after,
        )  # fmt: skip
        found, after, _ = yield from lists.rows(asked)
        every += [Workflow(*(*row, pipeline.load)) for row in found]
        if after is None:
            break
    every.sort(key=lambda workflow: workflow.id)  # they are newest first, and ids have the time in them
    matching = [each for each in every if _has(each, fields) and _has(_document(each), data)]
    if check is not None:
        check(matching, every, {**fields, **data}, lambda it: f"{it.entity_id}: {it.status}, {it.text}")
    return matching


def _published(
    topic: str | None, fields: dict[str, Any], payload: dict[str, Any], check: Check | None
) -> Steps[list[Published]]:
    rows = yield SQL["messages_written"], {"topic": None if check is not None else topic}
    every = [
        Published(name, key, json.loads(text or "null"), None if headers is None else json.loads(headers))
        for name, key, text, headers in rows
    ]
    named = {**({} if topic is None else {"topic": topic}), **fields}
    matching = [each for each in every if _has(each, named) and _has(each.payload, payload)]
    if check is not None:
        check(matching, every, {**named, **payload}, lambda it: f"{it.topic}: key {it.key}, {json.dumps(it.payload)}")
    return matching


def _document(workflow: Workflow[Any]) -> Any:
    """Returns a workflow's data; as it is stored if no code can read it."""
    try:
        return workflow.data
    except Exception:
        return json.loads(workflow.text)


def _has(thing: Any, fields: Mapping[str, Any]) -> bool:
    """Returns whether a thing has these fields, as a mapping or as an object, with these values."""
    missing = object()
    for name, value in fields.items():
        found = thing.get(name, missing) if isinstance(thing, Mapping) else getattr(thing, name, missing)
        if found is missing or not (found == value or _plain(found) == value):
            return False
    return True


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _check(one: str, many: str, count: int | None) -> Check:
    def check(
        matching: Sequence[Any], every: Sequence[Any], wanted: Mapping[str, Any], line: Callable[[Any], str]
    ) -> None:
        if len(matching) == count or (count is None and matching):
            return
        like = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
        asked = f"a {one}" if count is None else f"{count} {one if count == 1 else many}"
        told = f"{asked}{' with ' if like else ''}{like}: {len(matching)} of {len(every)} match"
        shown = matching if matching else every
        lines = [f"  {texts.printable(texts.clean(line(each), 300))}" for each in shown[:SHOWN]]
        more = [f"  … and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
        there = ["these match:" if matching else "these are there:"] if shown else []
        raise AssertionError("\n".join([told, *there, *lines, *more]))

    return check
