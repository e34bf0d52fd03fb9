"""What a person asks the tables and tells them: status, show, dead, set-status, retry. Each is a few statements."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.abc import Buffer
from psycopg.rows import dict_row, tuple_row
from psycopg.types.datetime import TimestamptzLoader
from psycopg.types.json import set_json_loads

from .. import documents
from ..database import statements
from ..errors import NotFound, OutboxError

SQL = {**statements.load("look"), "schedules": statements.load("scheduler")["schedules"]}
BATCH = 1_000

Row = dict[str, Any]


def status(conn: psycopg.Connection[Any]) -> dict[str, list[Row]]:
    """Return `overview`, a row for each pipeline, status and stage; and what is at work, and what is in the way."""
    return {
        name: _rows(conn, name) for name in ("overview", "limits", "progress", "workers", "relays", "parked_deliveries")
    }


def find(conn: psycopg.Connection[Any], entity: str, pipeline: str | None = None) -> list[Row]:
    """Return the workflows of an entity, in one pipeline or in all. NotFound if there is none."""
    found = _rows(conn, "workflows_of_entity", entity=entity, pipeline=pipeline)
    if not found:
        where = f'pipeline "{pipeline}"' if pipeline else "any pipeline"
        raise NotFound(f'there is no workflow of entity "{entity}" in {where}')
    return found


def find_one(conn: psycopg.Connection[Any], entity: str, pipeline: str | None = None) -> Row:
    """Return the only workflow of an entity. NotFound, naming the pipelines, if there are several."""
    found = find(conn, entity, pipeline)
    if len(found) > 1:
        names = ", ".join(row["pipeline"] for row in found)
        raise NotFound(f'entity "{entity}" is in several pipelines ({names}): say which with --pipeline')
    return found[0]


def show(conn: psycopg.Connection[Any], workflow: Row) -> Row:
    """Return a workflow with its history, its job, its dead job, what it waits for, and its messages."""
    key = {"id": workflow["id"]}
    return {
        **workflow,
        "history": _rows(conn, "history", **key),
        "job": next(iter(_rows(conn, "job", **key)), None),
        "dead_job": next(iter(_rows(conn, "dead_job", **key)), None),
        "checkpoints": _rows(conn, "checkpoints_of_workflow", **key),
        "approvals": _rows(conn, "approvals_of_workflow", **key),
        "waits_for": next(iter(_rows(conn, "wait_of_workflow", **key)), None),
        "parent": next(iter(_rows(conn, "parent_of_workflow", **key)), None),
        "children": _rows(conn, "children_of_workflow", **key),
        "signals": _rows(conn, "signals_of_workflow", **key),
        "messages": _rows(conn, "messages", **key),
    }


def dead(conn: psycopg.Connection[Any], pipeline: str | None = None, limit: int = 1_000_000) -> list[Row]:
    """Return dead jobs, the latest first."""
    return _rows(conn, "dead_jobs", pipeline=pipeline, limit=limit)


def schedules(conn: psycopg.Connection[Any]) -> list[Row]:
    """Return what runs by the clock: when next, and how it went last. `late_seconds` is negative until it is due."""
    return _rows(conn, "schedules")


def approvals(
    conn: psycopg.Connection[Any], *, pipeline: str | None = None, assignee: str | None = None, limit: int = 1_000_000
) -> list[Row]:
    """Return the questions that are open, the oldest first, with the data that they are about.

    `changed`: the data is not what it was when the question was asked; a decision must then name `shown`.
    """
    return _rows(conn, "approvals_open", pipeline=pipeline, assignee=assignee, limit=limit)


def parked(
    conn: psycopg.Connection[Any], *, relay: str | None = None, consumer: str | None = None, limit: int = 1_000_000
) -> list[Row]:
    """Return what relays could not send and consumers could not handle, of each the first one first.

    All of it, or that of one relay or one consumer. A row has the name of either as `relay` or as `consumer`.
    """
    rows = _rows(conn, "parked", relay=relay, consumer=consumer, limit=limit)
    for row in rows:
        if row["body"] is not None:
            row["body"] = row["body"].decode(errors="replace")
    return rows


def retry_parked(
    conn: psycopg.Connection[Any], *, relay: str | None = None, consumer: str | None = None, ids: Sequence[int] = ()
) -> int:
    """Have what is parked tried again by its relay or consumer, all or what has these ids; return how much that is.

    NotFound if an id isn't there or is that of several, naming them: then nothing is tried again.
    """
    with conn.transaction():
        rows = _rows(conn, "parked_retry", relay=relay, consumer=consumer, ids=list(ids) or None)
        for id_ in ids:
            names = [parked_by(row) for row in rows if row["id"] == id_]
            if not names:
                by = f" by {parked_by({'relay': relay, 'consumer': consumer})}" if relay or consumer else ""
                raise NotFound(f"nothing with the id {id_} is parked{by}")
            if len(names) > 1:
                raise NotFound(f"{id_} is parked by {', '.join(names)}: say whose with --relay or --consumer")
    return len(rows)


def parked_by(row: Row) -> str:
    """Return who has parked a row of `parked`, as people say it."""
    return f"consumer {row['consumer']}" if row["relay"] is None else f"relay {row['relay']}"


def forget_relay(conn: psycopg.Connection[Any], name: str) -> int:
    """Forget a relay that is gone for good, with what it has parked; returns how much that was.

    NotFound if there is none of this name, OutboxError if it is running.
    """
    (row,) = _rows(conn, "relay_forget", relay=name)
    if not row["found"]:
        raise NotFound(f'there is no relay "{name}"')
    if not row["gone"]:
        raise OutboxError(f'relay "{name}" is running: stop it first. One that was killed is gone after 15 seconds')
    return int(row["parked"])


def set_status(
    conn: psycopg.Connection[Any], workflow: UUID, status: str, *, actor: str, reason: str | None = None
) -> bool:
    """Move a workflow as `actor`, who says why. False if it has that status already.

    psycopg's error of the trigger (SQLSTATE OB001, OB003) if the change isn't legal.
    """
    with conn.transaction():
        conn.execute(SQL["change_mark"], {"actor": actor, "reason": reason})
        return conn.execute(SQL["status_set"], {"id": workflow, "status": status}).rowcount > 0


def find_stage(conn: psycopg.Connection[Any], name: str, pipeline: str | None = None) -> tuple[str, str]:
    """Return pipeline and stage of a name, "enrich" or "posts.enrich". NotFound if there is none, or more than one."""
    found = _rows(conn, "stages_named", stage=name, pipeline=pipeline)
    if not found:
        raise NotFound(f'no pipeline that is deployed here has a stage "{name}"')
    if len(found) > 1:
        names = ", ".join(f"{row['pipeline']}.{row['stage']}" for row in found)
        raise NotFound(f'"{name}" is a stage of several pipelines: say one of {names}')
    return found[0]["pipeline"], found[0]["stage"]


def pause(conn: psycopg.Connection[Any], pipeline: str, stage: str, *, by: str, reason: str | None = None) -> bool:
    """Have no worker claim for a stage any more; what runs goes on. False if it is paused already."""
    return bool(_rows(conn, "stage_pause", pipeline=pipeline, stage=stage, by=by, reason=reason))


def resume(conn: psycopg.Connection[Any], pipeline: str, stage: str) -> bool:
    """Have workers claim for a stage again, within a second or so. False if it wasn't paused."""
    return bool(_rows(conn, "stage_resume", pipeline=pipeline, stage=stage))


def retry(conn: psycopg.Connection[Any], workflow: UUID) -> bool:
    """Make the job of a workflow anew. False if it has one, or stands where no stage takes it."""
    return _make_anew(conn, [workflow]) > 0


def retry_all(conn: psycopg.Connection[Any], pipeline: str | None = None) -> int:
    """Make the jobs of all dead ones anew, in batches; return how many."""
    made, after = 0, UUID(int=0)
    while True:
        with conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(SQL["retry_candidates"], {"after": after, "pipeline": pipeline, "limit": BATCH})
            ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            return made
        made += _make_anew(conn, ids)
        after = ids[-1]


def _make_anew(conn: psycopg.Connection[Any], ids: list[UUID]) -> int:
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(SQL["retry_turn"])
        row = cursor.execute(SQL["jobs_make_anew"], {"ids": ids}).fetchone()
    return int(row[0]) if row else 0


class _Time(TimestamptzLoader):
    """A moment, or the text of one that Python has no date for: before year 1, after 9999."""

    def load(self, data: Buffer) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


def _json(data: str | bytes) -> Any:
    """A document, or the text of one that is in nobody's way in Postgres and that Python can't read or write."""
    text = data if isinstance(data, str) else data.decode()
    try:
        return json.loads(documents.check(text, "document"))
    except ValueError:
        return text


def _rows(conn: psycopg.Connection[Any], name: str, **params: Any) -> list[Row]:
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.adapters.register_loader("timestamptz", _Time)
        set_json_loads(_json, cursor)
        return cursor.execute(SQL[name], params or None).fetchall()
