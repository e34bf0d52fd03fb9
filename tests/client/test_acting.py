"""Who does something, and why, is kept in the history; what the transaction changes beside it is told as before."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, make_posts
from kit.waits import PAYMENT, Order, orders
from outbox import InvalidInput, NotDeployed, Pipeline, signal

Conn = psycopg.Connection[Any]
LAST = "SELECT actor, reason FROM outbox.state_changes ORDER BY at, version"


def test_who_submits_and_why_is_kept_for_this_call_only(conn: Conn) -> None:
    posts = deployed(conn, make_posts())
    with conn.transaction():
        conn.execute("SELECT set_config('outbox.actor', 'import', true), set_config('outbox.reason', 'nightly', true)")
        posts.submit(conn, "a", Post(), by="sarah")
        posts.submit(conn, "b", Post(), reason="by hand")
        posts.submit_many(conn, [("c", Post())], by="tom", reason="again")
        posts.submit(conn, "d", Post())
    posts.submit(conn, "e", Post(), by="sarah", reason="in autocommit")
    posts.submit(conn, "f", Post())
    told = dict(conn.execute("SELECT w.entity_id, (c.actor, c.reason)::text FROM outbox.state_changes AS c "
                             "JOIN outbox.workflow_states AS w ON w.id = c.workflow_id").fetchall())  # fmt: skip
    assert told == {
        "a": "(sarah,nightly)", "b": '(import,"by hand")', "c": "(tom,again)", "d": "(import,nightly)",
        "e": '(sarah,"in autocommit")', "f": f"({conn.info.user},)",
    }  # fmt: skip


def test_after_a_call_that_failed_others_are_not_in_its_name(conn: Conn) -> None:
    posts = deployed(conn, make_posts())
    missing = Pipeline("missing", initial="NEW", final={"DONE"})
    with conn.transaction():
        with pytest.raises(InvalidInput):
            posts.submit_many(conn, [("a", Post()), ("", Post())], by="sarah", reason="by hand")
        with pytest.raises(NotDeployed):
            missing.submit(conn, "b", {}, by="tom")
        posts.submit(conn, "c", Post())
    assert conn.execute(LAST).fetchall() == [(conn.info.user, None)]


def test_who_signals_is_kept(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(PAYMENT))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    signal(conn, pipeline, "a", "payment", {"sum": 5}, by="bank")
    assert ("bank", "signal payment") in conn.execute(LAST).fetchall()


def test_a_name_that_cannot_be_stored_is_refused_before_any_sql(conn: Conn) -> None:
    posts = deployed(conn, make_posts())
    with pytest.raises(InvalidInput, match="by"):
        posts.submit(conn, "a", Post(), by="x" * 300)
    assert conn.execute("SELECT FROM outbox.workflow_states").fetchall() == []
