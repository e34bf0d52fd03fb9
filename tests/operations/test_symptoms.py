"""`outbox doctor` finds what goes on without end, or stands still, although workers run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.commands import Outbox
from kit.pipelines import Post, deployed
from outbox.operations import symptoms

Conn = psycopg.Connection[Any]


def told(conn: Conn) -> list[str]:
    """Return what is found without the code."""
    return [finding.what for finding in symptoms.look(conn, [])]


@pytest.fixture
def shop(conn: Conn) -> Conn:
    deployed(conn, posts)
    return conn


def test_a_job_that_is_put_back_again_and_again_is_found(shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    shop.execute("UPDATE outbox.jobs SET released = 3, error = 'its data was changed meanwhile'")
    (what,) = told(shop)
    assert "1 job of posts.enrich put back again and again, one of them 3 times in a row" in what


def test_a_workflow_with_thousands_of_changes_is_found(shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    shop.execute("UPDATE outbox.jobs SET entered = 1001")
    assert told(shop) == ["workflow a of posts, in RECEIVED, has had 1,001 changes: perhaps in a loop"]


def test_a_job_that_is_held_far_beyond_its_timeout_is_found(shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    shop.execute("""UPDATE outbox.jobs SET owner = 1, attempt = 1,
        claimed_at = now() - interval '10 minutes'""")
    assert told(shop) == []
    (found,) = symptoms.look(shop, [posts])
    assert "1 job of posts.enrich held for 10 minutes, far beyond its timeout" in found.what


def test_a_parent_that_cannot_move_is_found(outbox: Outbox, shop: Conn) -> None:
    posts.submit(shop, "a", Post())
    shop.execute("""INSERT INTO outbox.waits (workflow_id, to_status, children)
        SELECT id, 'NOWHERE', 0 FROM outbox.workflow_states""")
    assert told(shop) == ["workflow a of posts waits in RECEIVED though its children have ended"]
    (found,) = [each for each in outbox("doctor", "--json", code=1).json if "its children have ended" in each["what"]]
    assert "is not a legal change" in found["do"]


@pytest.mark.parametrize(
    "how", ["UPDATE outbox.workflow_states SET metadata = '{}'", "SELECT FROM outbox.jobs FOR UPDATE"]
)
def test_a_session_that_holds_rows_is_named(
    shop: Conn, connect: Callable[..., Conn], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("outbox.operations.symptoms.HELD_ROWS", 0.0)
    posts.submit(shop, "a", Post())
    holder = connect(autocommit=False)
    holder.execute("SET application_name = 'psql'")
    holder.execute(how.encode())
    found = told(shop)
    assert len(found) == 1
    assert found[0].startswith(f"session pid {holder.info.backend_pid} (psql, idle in transaction) has rows of outbox.")


def test_counts_that_are_not_folded_are_found(shop: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.operations.symptoms.MANY_UNFOLDED", 10)
    shop.execute("INSERT INTO outbox.status_counts SELECT 'posts', 'RECEIVED', 0 FROM generate_series(1, 11)")
    found = told(shop)
    assert found == ["more than 10 rows of outbox.status_counts are not folded: overview becomes slow"]


def test_row_security_is_found(shop: Conn) -> None:
    shop.execute("ALTER TABLE outbox.jobs ENABLE ROW LEVEL SECURITY")
    (what,) = told(shop)
    assert "row security is on for outbox.jobs" in what


def test_a_table_that_a_publication_cannot_name_the_rows_of_is_found(shop: Conn, admin_dsn: str) -> None:
    shop.execute("ALTER TABLE outbox.status_counts REPLICA IDENTITY NOTHING")
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        (what,) = told(shop)
        admin.execute("DROP PUBLICATION everything")
    assert "publication everything has outbox.status_counts" in what
