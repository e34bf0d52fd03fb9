"""Makes the changes that a person asks for: set a status, cancel, retry, pause, resume, forget a relay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import tuple_row

from ..client.cancel import cancel as client_cancel
from ..database import statements, turn
from ..database.refusals import raised_as_ours
from ..errors import NotFound, OutboxError
from .look import parked_by, rows

SQL = statements.load("change")

BATCH = 1_000
"""How many dead jobs one transaction retries. It locks as many workflows, for well below a second."""


def retry_parked(
    conn: psycopg.Connection[Any], *, relay: str | None = None, consumer: str | None = None, ids: Sequence[int] = ()
) -> int:
    """Marks parked messages, all or those with these ids. Their relay or consumer then tries them again.

    Returns how many it marked. Raises NotFound, and marks none, if an id isn't parked, or if several relays or
    consumers have parked it; the error names them.
    """
    with conn.transaction():
        found = rows(conn, SQL["parked_retry"], relay=relay, consumer=consumer, ids=list(ids) or None)
        conn.execute(SQL["answer_waits"])
        for id_ in ids:
            names = [parked_by(row) for row in found if row["id"] == id_]
            if not names:
                by = f" by {parked_by({'relay': relay, 'consumer': consumer})}" if relay or consumer else ""
                raise NotFound(f"no message with the id {id_} is parked{by}")
            if len(names) > 1:
                raise NotFound(f"{id_} is parked by {', '.join(names)}: say whose with --relay or --consumer")
    return len(found)


def forget_relay(conn: psycopg.Connection[Any], name: str) -> int:
    """Forgets a relay that will never run again, and deletes its parked messages. Returns how many it deleted.

    Raises NotFound if there is no relay of this name, and OutboxError if it is running.
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
    """Moves a workflow to a status in the name of `actor`. Returns False if it already has that status.

    Raises IllegalChange or UnknownStatus if the pipeline doesn't allow the change.
    """
    with raised_as_ours(), conn.transaction():
        conn.execute(SQL["change_mark"], {"actor": actor, "reason": reason})
        return conn.execute(SQL["status_set"], {"id": workflow, "status": status}).rowcount > 0


def cancel(
    conn: psycopg.Connection[Any], pipeline: str, entity_id: str, *, by: str | None = None, reason: str | None = None
) -> str:
    """Cancels a workflow of a pipeline that is given by its name, and returns its status. See Pipeline.cancel."""
    with conn.transaction():
        conn.execute(SQL["answer_waits"])
        return str(client_cancel(pipeline, conn, entity_id, by, reason))


def find_stage(conn: psycopg.Connection[Any], name: str, pipeline: str | None = None) -> tuple[str, str]:
    """Returns the pipeline and the stage that a name means, "enrich" or "posts.enrich".

    Raises NotFound unless the name means exactly one stage.
    """
    found = rows(conn, SQL["stages_named"], stage=name, pipeline=pipeline)
    if not found:
        raise NotFound(f'no pipeline that is deployed here has a stage "{name}"')
    if len(found) > 1:
        names = ", ".join(f"{row['pipeline']}.{row['stage']}" for row in found)
        raise NotFound(f'"{name}" is a stage of several pipelines: say one of {names}')
    return found[0]["pipeline"], found[0]["stage"]


def pause(conn: psycopg.Connection[Any], pipeline: str, stage: str, *, by: str, reason: str | None = None) -> bool:
    """Pauses a stage: no worker claims for it, and running jobs go on. Returns False if it was already paused."""
    return bool(rows(conn, SQL["stage_pause"], pipeline=pipeline, stage=stage, by=by, reason=reason))


def resume(conn: psycopg.Connection[Any], pipeline: str, stage: str) -> bool:
    """Resumes a stage: workers claim for it again within about a second. Returns False if it wasn't paused."""
    return bool(rows(conn, SQL["stage_resume"], pipeline=pipeline, stage=stage))


def retry(conn: psycopg.Connection[Any], workflow: UUID) -> bool:
    """Makes a new job for a workflow. Returns False if the workflow has a live job, or if no stage takes its status."""
    return _make_jobs(conn, [workflow]) > 0


def retry_all(conn: psycopg.Connection[Any], pipeline: str | None = None) -> int:
    """Makes new jobs for all dead jobs, in batches. Returns how many."""
    made, after = 0, UUID(int=0)
    while True:
        with conn.cursor(row_factory=tuple_row) as cursor:
            cursor.execute(SQL["retry_candidates"], {"after": after, "pipeline": pipeline, "limit": BATCH})
            ids = [row[0] for row in cursor.fetchall()]
        if not ids:
            conn.execute(SQL["answer_waits"])
            return made
        made += _make_jobs(conn, ids)
        after = ids[-1]


def _make_jobs(conn: psycopg.Connection[Any], ids: list[UUID]) -> int:
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        turn.take(conn, "deploy", shared=True)
        row = cursor.execute(SQL["jobs_retry"], {"ids": ids}).fetchone()
    return int(row[0]) if row else 0
