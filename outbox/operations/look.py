"""Looks up what a person asks: where workflows are, the history of one, what is dead, parked or waits for an answer.

Each lookup is a few statements, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads

from .. import documents
from ..client import dead as dead_jobs
from ..client import lists, questions, why
from ..client import overview as counts
from ..client.execute import drive
from ..database import statements
from ..errors import NotFound

SQL = statements.load("look")

Row = dict[str, Any]

MOST = 100
"""The default limit of a list, in rows: a table of a hundred thousand rows takes minutes and gigabytes to print."""


COUNTED = 10_000
"""Where the count of the rows that a list leaves out stops: counting a million takes longer than the list."""


class Listed(list[Row]):
    """The first rows of a list. `more` is how many others there are, counted up to COUNTED."""

    more: int = 0


def status(conn: psycopg.Connection[Any]) -> dict[str, list[Row]]:
    """Returns the tables of `outbox status`, by name.

    `overview` has a row for each pipeline, status and stage, in the order of the flow.
    """
    return tables(
        conn, ("overview", "overdue", "effects_unknown", "limits", "progress", "workers", "relays", "parked_deliveries")
    )


def tables(conn: psycopg.Connection[Any], wanted: Sequence[str]) -> dict[str, list[Row]]:
    """Returns some of the tables of `status`."""
    return {name: overview(conn) if name == "overview" else rows(conn, SQL[name]) for name in wanted}


def overview(conn: psycopg.Connection[Any], pipeline: str | None = None) -> list[Row]:
    """Returns a row for each pipeline, status and stage, of one pipeline or of all, in the order of the flow."""
    names = [each.name for each in fields(counts.StatusCount)]  # a hundred thousand rows take asdict seconds
    return [{name: getattr(row, name) for name in names} for row in drive(conn, counts.counts(pipeline))]


def workflows(
    conn: psycopg.Connection[Any], pipeline: str | None = None, *, data: bool = True, **asked: Any
) -> dict[str, Any]:
    """Returns a page of a list: its `workflows`, the cursor `after` which it goes on, and whether it is `bounded`.

    The filters are those of `Pipeline.find`; without a pipeline, they are for all. See docs/lists.md. Without `data`,
    none is read: `metadata` is None.
    """
    found, after, bounded = drive(conn, lists.rows(lists.checked(pipeline=pipeline, **asked), data=data))
    if not found:
        _require_known(conn, pipeline, asked["status"])
    names = [each.name for each in fields(lists.Workflow) if each.name not in ("text", "load")]
    listed = [
        {**dict(zip(names, row, strict=False)), "metadata": documents.read(row[-1]) if data else None} for row in found
    ]
    return {"workflows": listed, "after": after, "bounded": bounded}


def names(conn: psycopg.Connection[Any], pipeline: str | None = None) -> tuple[list[str], list[str]]:
    """Returns the names of the deployed pipelines, and those of the statuses of one or of all."""
    ((pipelines, statuses),) = (row.values() for row in rows(conn, SQL["names_known"], pipeline=pipeline))
    return pipelines, statuses


def _require_known(conn: psycopg.Connection[Any], pipeline: str | None, status: str | None = None) -> None:
    """Raises NotFound if a list is empty because its pipeline or its status is misspelt: there is none of that name."""
    pipelines, statuses = names(conn, pipeline)
    if pipeline is not None and pipeline not in pipelines:
        deployed = f"; deployed are {', '.join(pipelines)}" if pipelines else ""
        raise NotFound(f'pipeline "{pipeline}" is not deployed here{deployed}')
    if status is not None and status not in statuses:
        where = f'pipeline "{pipeline}" has' if pipeline else "the deployed pipelines have"
        raise NotFound(f'{where} no status "{status}", but {", ".join(statuses) or "none at all"}')


def find(conn: psycopg.Connection[Any], entity: str, pipeline: str | None = None) -> list[Row]:
    """Returns the workflows of an entity, in one pipeline or in all. Raises NotFound if there is none."""
    found = rows(conn, SQL["workflows_of_entity"], entity=entity, pipeline=pipeline)
    if not found:
        where = f'pipeline "{pipeline}"' if pipeline else "any pipeline"
        raise NotFound(f'there is no workflow of entity "{entity}" in {where}')
    return found


def find_one(conn: psycopg.Connection[Any], entity: str, pipeline: str | None = None) -> Row:
    """Returns the only workflow of an entity. Raises NotFound if there is none or, with the pipelines, several."""
    found = find(conn, entity, pipeline)
    if len(found) > 1:
        names = ", ".join(row["pipeline"] for row in found)
        raise NotFound(f'entity "{entity}" is in several pipelines ({names}): say which with --pipeline')
    return found[0]


def find_asking(conn: psycopg.Connection[Any], entity: str, pipeline: str | None = None) -> Row:
    """Returns the workflow of an entity that has asked a question: of several pipelines, the only one that has.

    Raises NotFound if there is no workflow, or with the pipelines, if several have asked, or none of several has.
    """
    found = find(conn, entity, pipeline)
    if len(found) == 1:
        return found[0]
    open_ = {row["id"] for row in found if rows(conn, SQL["approval_is_open"], id=row["id"])[0]["open"]}
    asking = [row for row in found if row["id"] in open_]
    if len(asking) == 1:
        return asking[0]
    names = ", ".join(row["pipeline"] for row in asking or found)
    what = "has asked in several pipelines" if asking else "is in several pipelines, and has asked in none"
    raise NotFound(f'entity "{entity}" {what} ({names}): say which with --pipeline')


def show(conn: psycopg.Connection[Any], workflow: Row, limit: int = MOST) -> Row:
    """Returns a workflow with why it does not move, its history, its job, what it waits for, and its messages.

    Of each list it returns the latest `limit` rows in their order; `more` has how many others there are.
    """
    key = {"id": workflow["id"]}
    latest = {**key, "limit": limit}
    found = {
        **workflow,
        "why": asdict(drive(conn, why.asked(workflow["pipeline"], workflow["entity_id"]))),
        "history": rows(conn, SQL["history"], **latest)[::-1],
        "actions": rows(conn, SQL["actions_of_workflow"], **latest)[::-1],
        "job": next(iter(rows(conn, SQL["job"], **key)), None),
        "dead_job": next(iter(rows(conn, SQL["dead_job"], **key)), None),
        "checkpoints": rows(conn, SQL["checkpoints_of_workflow"], **latest)[::-1],
        "effects": rows(conn, SQL["effects_of_workflow"], **latest)[::-1],
        "approvals": rows(conn, SQL["approvals_of_workflow"], **latest)[::-1],
        "waits_for": next(
            ({**row.pop("details"), **row} for row in rows(conn, SQL["waiting_of_workflow"], **key)), None
        ),
        "parent": next(iter(rows(conn, SQL["parent_of_workflow"], **key)), None),
        "children": rows(conn, SQL["children_of_workflow"], **latest),
        "signals": rows(conn, SQL["signals_of_workflow"], **latest)[::-1],
        "messages": rows(conn, SQL["messages"], **latest)[::-1],
    }
    (sizes,) = rows(conn, SQL["sizes_of_workflow"], **key)
    found["more"] = {name: size - limit for name, size in sizes.items() if size > limit}
    return found


def is_final(conn: psycopg.Connection[Any], pipeline: str, status: str) -> bool:
    """Tells whether a workflow in this status has ended."""
    (row,) = rows(conn, SQL["status_is_final"], pipeline=pipeline, status=status)
    return bool(row["final"])


def dead(
    conn: psycopg.Connection[Any], pipeline: str | None = None, limit: int = MOST, error: str | None = None
) -> Listed:
    """Returns dead jobs, the latest first: all, or those that died of an error (or its kind)."""
    asked = {"pipeline": pipeline, "error": error, "limit": limit}
    found = Listed(asdict(row) for row in drive(conn, dead_jobs.jobs(asked)))
    if not found:
        _require_known(conn, pipeline)
    if len(found) == limit:
        counted = sum(row["jobs"] for row in errors(conn, pipeline, error))
        found.more = max(0, counted - limit)
    return found


def errors(conn: psycopg.Connection[Any], pipeline: str | None = None, error: str | None = None) -> list[Row]:
    """Returns the kinds of errors that dead jobs died of, with their numbers, the most frequent first."""
    found = rows(conn, SQL["errors"], pipeline=pipeline, error=error)
    if not found:
        _require_known(conn, pipeline)
    return found


def schedules(conn: psycopg.Connection[Any]) -> list[Row]:
    """Returns the schedules, with their next tick and how the last one went.

    `late_seconds` is negative until the tick is due.
    """
    return rows(conn, SQL["schedules"])


def approvals(
    conn: psycopg.Connection[Any], *, pipeline: str | None = None, assignee: str | None = None, limit: int = MOST
) -> Listed:
    """Returns the open questions, the oldest first, with the data that they are about.

    `changed` says whether the data has changed since the question was asked. If so, a decision must pass `shown`.
    """
    asked = {"pipeline": pipeline, "assignee": assignee}
    steps = questions.open_questions({**asked, "after": None, "limit": limit})
    found = _counted(conn, [asdict(row) for row in drive(conn, steps)], "approvals_open_count", limit, asked)
    if not found:
        _require_known(conn, pipeline)
    return found


def question(conn: psycopg.Connection[Any], id_: UUID) -> Row | None:
    """Returns a question, open or ended, with what it is about now; None if there is none."""
    return next(iter(rows(conn, SQL["question"], id=id_)), None)


def askers(conn: psycopg.Connection[Any], id_: UUID) -> set[str]:
    """Returns who has asked a question: who it says, or else who has started the workflow or one of its ancestors."""
    return {row["name"] for row in rows(conn, SQL["askers"], id=id_)}


def effects(
    conn: psycopg.Connection[Any], *, pipeline: str | None = None, unknown: bool = False, limit: int = MOST
) -> Listed:
    """Returns effects, the latest first, or with `unknown` those that may have happened, the oldest first."""
    found = _listed(conn, "effects", "effects_count", limit, pipeline=pipeline, unknown=unknown)
    if not found:
        _require_known(conn, pipeline)
    return found


def delegations(conn: psycopg.Connection[Any], *, person: str | None = None, limit: int = MOST) -> Listed:
    """Returns the delegations that have not ended, of all people, or those of and to one, the first to end first."""
    return _listed(conn, "delegations", "delegations_count", limit, person=person)


def now(conn: psycopg.Connection[Any]) -> datetime:
    """Returns the time by the database's clock."""
    (row,) = rows(conn, SQL["now"])
    found: datetime = row["now"]
    return found


def parked(
    conn: psycopg.Connection[Any], *, relay: str | None = None, consumer: str | None = None, limit: int = MOST
) -> Listed:
    """Returns the messages that relays could not send and consumers could not handle, the first of each first.

    With `relay` or `consumer`, returns only the messages of that one. A row has its name as `relay` or as `consumer`.
    """
    found = _listed(conn, "parked", "parked_count", limit, relay=relay, consumer=consumer)
    for row in found:
        if row["body"] is not None:
            row["body"] = row["body"].decode(errors="replace")
    return found


def _listed(conn: psycopg.Connection[Any], name: str, count: str, limit: int, **params: Any) -> Listed:
    return _counted(conn, rows(conn, SQL[name], **params, limit=limit), count, limit, params)


def _counted(
    conn: psycopg.Connection[Any], listed: list[Row], count: str, limit: int, params: dict[str, Any]
) -> Listed:
    found = Listed(listed)
    if len(found) == limit:
        ((total,),) = (row.values() for row in rows(conn, SQL[count], **params, most=limit + COUNTED))
        found.more = max(0, total - limit)
    return found


def parked_by(row: Row) -> str:
    """Returns in words which relay or consumer has parked a row of `parked`."""
    return f"consumer {row['consumer']}" if row["relay"] is None else f"relay {row['relay']}"


class _Time(TimestamptzLoader):
    """Loads a time, or its text if it is before the year 1 or after 9999, which Python's datetime can't hold."""

    def load(self, data: Buffer) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


def _json(data: str | bytes) -> Any:
    return documents.read(data if isinstance(data, str) else data.decode())


def rows(conn: psycopg.Connection[Any], statement: bytes, **params: Any) -> list[Row]:
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("timestamptz", _Time)
        set_json_loads(_json, cursor)
        return cursor.execute(statement, params or None).fetchall()
