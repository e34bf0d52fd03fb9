"""Makes the changes that a person asks for: cancel, erase, retry, forget a relay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from ..client import dead
from ..client.cancel import cancel as client_cancel
from ..client.erase import Erased
from ..client.erase import erase as client_erase
from ..database import statements, turn
from ..errors import NotFound, OutboxError
from .look import parked_by, rows

SQL = statements.load("change")


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


def cancel(
    conn: psycopg.Connection[Any], pipeline: str, entity_id: str, *, by: str | None = None, reason: str | None = None
) -> str:
    """Cancels a workflow of a pipeline that is given by its name, and returns its status. See Pipeline.cancel."""
    with conn.transaction():
        conn.execute(SQL["answer_waits"])
        return str(client_cancel(pipeline, conn, entity_id, by, reason))


def erase(
    conn: psycopg.Connection[Any], pipeline: str, entity_id: str, *, by: str | None = None, reason: str | None = None
) -> Erased:
    """Erases a workflow of a pipeline that is given by its name. See Pipeline.erase."""
    with conn.transaction():
        erased: Erased = client_erase(pipeline, conn, entity_id, by, reason)
        return erased


def retry(
    conn: psycopg.Connection[Any], pipeline: str, entity_id: str, *, by: str | None = None, reason: str | None = None
) -> bool:
    """Makes a new job for a workflow, as `outbox.retry` does. Logs who holds up a deploy's turn."""
    with conn.transaction():
        turn.take(conn, "deploy", shared=True)
        return dead.retry(conn, pipeline, entity_id, by=by, reason=reason)
