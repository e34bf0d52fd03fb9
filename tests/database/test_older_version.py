"""A row that was read before another change is not written back whole: an ORM's stale save is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, value
from kit.servers import wait_for
from outbox import OlderVersion
from outbox.database.refusals import raised_as_ours

Conn = psycopg.Connection[Any]
SAVE = """
    UPDATE outbox.workflow_states
    SET pipeline = %(pipeline)s, entity_id = %(entity_id)s, current_status = %(current_status)s,
        metadata = %(metadata)s::text::jsonb, version = %(version)s, created_at = %(created_at)s, updated_at = %(updated_at)s
    WHERE id = %(id)s
"""


@pytest.fixture
def posts(conn: Conn) -> Conn:
    deployed(conn).submit(conn, "a", Post())
    return conn


def read(conn: Conn) -> dict[str, Any]:
    with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        row = cursor.execute(
            "SELECT id, pipeline, entity_id, current_status, metadata::text, version, created_at, updated_at "
            "FROM outbox.workflow_states"
        ).fetchone()
    assert row is not None
    return row


def test_a_stale_save_of_the_whole_row_is_refused_and_the_change_before_it_stays(posts: Conn) -> None:
    row = read(posts)
    posts.execute('UPDATE outbox.workflow_states SET metadata = metadata || \'{"content": "new"}\'')
    with pytest.raises(OlderVersion) as refused, raised_as_ours():
        posts.execute(SAVE, {**row, "current_status": "ENRICHED"})
    assert (refused.value.entity_id, refused.value.version, refused.value.older) == ("a", 2, 1)
    assert refused.value.sqlstate == "OB030"
    assert "Read the row again" in str(refused.value)
    assert value(posts, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "new"
    posts.execute(SAVE, {**read(posts), "current_status": "ENRICHED"})
    assert (read(posts)["current_status"], read(posts)["version"]) == ("ENRICHED", 3)


def test_a_stale_save_that_has_waited_for_the_other_change_is_refused(
    posts: Conn, connect: Callable[..., Conn]
) -> None:
    row, other, third = read(posts), connect(autocommit=False), connect()
    other.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED'")
    pid = posts.info.backend_pid
    posts.pgconn.send_query(b"UPDATE outbox.workflow_states SET metadata = '{}', version = 1")
    wait_for(
        lambda: value(third, "SELECT cardinality(pg_blocking_pids(%s)) > 0", pid), what="the save waits for the change"
    )
    other.commit()
    result = posts.pgconn.get_result()
    assert result is not None
    assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"OB030"
    while posts.pgconn.get_result() is not None:
        pass
    assert row["version"] == 1


@pytest.mark.parametrize(
    "update",
    [
        "metadata = '{}'",
        "metadata = '{}', version = version",
        "current_status = 'ENRICHED', version = version + 1",
        "version = version",
        "current_status = 'ENRICHED', version = 99",
    ],
)
def test_an_update_that_names_no_older_version_works_as_before(posts: Conn, update: str) -> None:
    posts.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "new"}\'')
    posts.execute(f"UPDATE outbox.workflow_states SET {update}".encode())
    assert read(posts)["version"] == (2 if update == "version = version" else 3)


def test_a_stale_save_among_others_refuses_all_of_them(posts: Conn) -> None:
    posts.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'b')")
    posts.execute("UPDATE outbox.workflow_states SET metadata = '{\"n\": 1}' WHERE entity_id = 'a'")
    with pytest.raises(psycopg.Error, match='entity "a"'):
        posts.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED', version = 1")
    assert value(posts, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'RECEIVED'") == 2
