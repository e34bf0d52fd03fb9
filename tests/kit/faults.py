"""Prepares the application of the fault tests (apps/fault.py): its tables, its work, and the checks at the end."""

from __future__ import annotations

import os
import sys
from typing import Any

import psycopg

from kit.pipelines import value
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
WORKER = ["worker", "--app", "apps.fault:app"]


def prepare(conn: Conn, dsn: str) -> Any:
    """Deploys the application and makes the tables that witness its effects. No constraint hides a second effect."""
    os.environ["OUTBOX_DSN"] = dsn
    sys.modules.pop("apps.fault", None)
    from apps.fault import app

    deploy.deploy(conn, app)
    conn.execute("CREATE TABLE outbox.witness (entity text, attempt int, key text)")
    conn.execute("CREATE TABLE outbox.ledger (entity text, attempt int)")
    conn.execute("CREATE TABLE outbox.gate (opened int)")
    return app


def submit(conn: Conn, app: Any, *entities: str) -> None:
    app.submit_many(conn, ((entity, {}) for entity in entities))


def open_gate(conn: Conn) -> None:
    conn.execute("INSERT INTO outbox.gate VALUES (1)")


def drained(conn: Conn) -> bool:
    return not value(conn, "SELECT count(*) FROM outbox.jobs")


def held(conn: Conn, entity: str = "%") -> int:
    """Returns how many jobs of these entities are claimed."""
    return int(
        value(
            conn,
            "SELECT count(*) FROM outbox.jobs j JOIN outbox.workflow_states w ON w.id = workflow_id "
            "WHERE owner IS NOT NULL AND entity_id LIKE %s",
            entity,
        )
    )


def check_books(conn: Conn, count: int, dead: int = 0) -> None:
    """Checks that each workflow ended with a ledger row, a history without gap or repeat, and one message a change."""
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == count - dead
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == dead
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
    ledger = "SELECT count(*), count(DISTINCT entity) FROM outbox.ledger"
    assert conn.execute(ledger).fetchone() == (count - dead, count - dead), "an effect in the transaction happens once"
    assert (
        value(
            conn,
            "SELECT count(*) FROM (SELECT workflow_id, array_agg(version ORDER BY version) v, "
            "array_agg(coalesce(from_status, '-') || '>' || to_status ORDER BY version) c FROM outbox.state_changes "
            "GROUP BY 1) h WHERE v <> ARRAY[1, 2, 3]::bigint[] OR c <> ARRAY['->NEW', 'NEW>MID', 'MID>DONE']",
        )
        == dead
    ), "the history of a workflow that ended is NEW, MID, DONE"
    assert (
        value(conn, "SELECT count(*) FROM outbox.witness e GROUP BY key HAVING count(*) <> count(DISTINCT attempt)")
        is None
    )
    assert (
        value(
            conn, "SELECT count(*) FROM (SELECT entity FROM outbox.witness GROUP BY 1 HAVING count(DISTINCT key) > 1) x"
        )
        == 0
    )
    sent = "SELECT count(*), count(DISTINCT workflow_id) FROM outbox.messages"
    changed = value(
        conn,
        "SELECT count(*) FROM outbox.state_changes JOIN outbox.workflow_states w ON w.id = workflow_id "
        "WHERE to_status = 'MID' AND entity_id NOT LIKE 'quick%'",
    )
    assert conn.execute(sent).fetchone() == (changed, changed), (
        "a message for each commit, none of an attempt that lost"
    )
