"""What a person changes: set a status, retry, pause, resume, forget a relay. Each is a few statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from ..database import statements
from ..errors import NotFound, OutboxError
from .look import parked_by, rows

SQL = statements.load("change")

BATCH = 1_000
"""How many dead jobs one transaction retries."""


def retry_parked(
    conn: psycopg.Connection[Any], *, relay: str | None = None, consumer: str | None = None, ids: Sequence[int] = ()
) -> int:
    """Have what is parked tried again by its relay or consumer, all or what has these ids; return how much that is.

    NotFound if an id isn't there or is that of several, naming them: then nothing is tried again.
    """
    with conn.transaction():
        found = rows(conn, SQL["parked_retry"], relay=relay, consumer=consumer, ids=list(ids) or None)
        for id_ in ids:
            names = [parked_by(row) for row in found if row["id"] == id_]
            if not names:
                by = f" by {parked_by({'relay': relay, 'consumer': consumer})}" if relay or consumer else ""
                raise NotFound(f"nothing with the id {id_} is parked{by}")
            if len(names) > 1:
                raise NotFound(f"{id_} is parked by {', '.join(names)}: say whose with --relay or --consumer")
    return len(found)


def forget_relay(conn: psycopg.Connection[Any], name: str) -> int:
    """Forget a relay that is gone for good, with what it has parked; returns how much that was.

    NotFound if there is none of this name, OutboxError if it is running.
    """
    (row,) = rows(conn, SQL["relay_forget"], relay=name)
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
    found = rows(conn, SQL["stages_named"], stage=name, pipeline=pipeline)
    if not found:
        raise NotFound(f'no pipeline that is deployed here has a stage "{name}"')
    if len(found) > 1:
        names = ", ".join(f"{row['pipeline']}.{row['stage']}" for row in found)
        raise NotFound(f'"{name}" is a stage of several pipelines: say one of {names}')
    return found[0]["pipeline"], found[0]["stage"]


def pause(conn: psycopg.Connection[Any], pipeline: str, stage: str, *, by: str, reason: str | None = None) -> bool:
    """Have no worker claim for a stage any more; what runs goes on. False if it is paused already."""
    return bool(rows(conn, SQL["stage_pause"], pipeline=pipeline, stage=stage, by=by, reason=reason))


def resume(conn: psycopg.Connection[Any], pipeline: str, stage: str) -> bool:
    """Have workers claim for a stage again, within a second or so. False if it wasn't paused."""
    return bool(rows(conn, SQL["stage_resume"], pipeline=pipeline, stage=stage))


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
