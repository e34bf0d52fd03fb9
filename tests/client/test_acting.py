"""Who does something, and why, is kept in the history; what the transaction changes beside it is told as before."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg2
import pytest

from kit.pipelines import Post, deployed, drain, make_posts, value
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


WRONG = (
    "SELECT count(*) FROM outbox.state_changes AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id "
    "WHERE c.actor <> split_part(w.entity_id, ' ', 1)"
)


@pytest.mark.parametrize("connect", [psycopg.connect, psycopg2.connect], ids=["psycopg", "psycopg2"])
def test_threads_that_share_a_connection_keep_their_names(conn: Conn, dsn: str, connect: Any) -> None:
    posts = deployed(conn, make_posts())
    shared = connect(dsn)
    try:
        with ThreadPoolExecutor(4) as threads:
            names = [f"user{n % 4}" for n in range(80)]
            list(threads.map(lambda n: posts.submit(shared, f"{names[n]} {n}", Post(), by=names[n]), range(80)))
        posts.submit(shared, f"{conn.info.user} by itself", Post())
        shared.commit()
    finally:
        shared.close()
    assert (value(conn, WRONG), value(conn, "SELECT count(*) FROM outbox.workflow_states")) == (0, 81)


@pytest.mark.parametrize("autocommit", [False, True])
def test_tasks_that_share_a_connection_keep_their_names(conn: Conn, dsn: str, autocommit: bool) -> None:
    posts = deployed(conn, make_posts())

    async def share() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=autocommit) as shared:
            calls = [posts.submit(shared, f"user{n} {n}", Post(), by=f"user{n}") for n in range(4)]
            await asyncio.gather(*calls, posts.submit(shared, f"{conn.info.user} by itself", Post()))

    asyncio.run(share())
    assert (value(conn, WRONG), value(conn, "SELECT count(*) FROM outbox.workflow_states")) == (0, 5)


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
