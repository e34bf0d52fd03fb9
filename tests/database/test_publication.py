"""A publication FOR ALL TABLES: every row of ours that is changed or deleted can be."""

from __future__ import annotations

from typing import Any

import psycopg

from kit.pipelines import Post, deployed, drain, make_posts, value
from outbox.engine import maintenance

Conn = psycopg.Connection[Any]

WITHOUT = """
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind = 'r' AND c.relreplident = 'd'
  AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
"""


def test_every_table_has_a_replica_identity(conn: Conn) -> None:
    assert conn.execute(WITHOUT.encode()).fetchall() == []


def test_counts_are_folded_and_messages_stamped_under_a_publication(conn: Conn, admin_dsn: str, dsn: str) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    posts = deployed(conn, make_posts())
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(3)])
    drain(posts, dsn)
    conn.execute(maintenance.SQL["counts_fold"], {})
    assert conn.execute("SELECT status, workflows FROM outbox.status_counts").fetchall() == [("COMPLETED", 3)]
    conn.execute("UPDATE outbox.messages SET xid = xid")
    conn.execute("DELETE FROM outbox.workflow_states")
    assert value(conn, "SELECT sum(workflows) FROM outbox.status_counts") == 0
