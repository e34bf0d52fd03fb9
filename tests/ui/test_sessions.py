"""A page stays readable when Postgres doesn't: a late panel says so, the others stand, and all recovers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.browsing import visitor
from kit.databases import make_database
from kit.pipelines import value
from kit.servers import PostgresServer
from outbox.database import migrations
from outbox.operations import sessions
from outbox.operations.sessions import Late, Sessions

Conn = psycopg.Connection[Any]


def test_a_panel_that_is_late_says_so_and_the_others_stand(shop: Conn, dsn: str, connect: Any) -> None:
    other = connect(autocommit=False)
    other.execute("LOCK TABLE outbox.approvals")
    page = visitor(dsn, statement_timeout=0.3).get("/")
    assert page.status == 200
    assert "took longer than 0.3 s" in page.text
    assert "WAITING_FOR_REVIEW" in page.text


def test_a_page_that_has_nothing_else_to_show_says_that_it_is_late(shop: Conn, dsn: str, connect: Any) -> None:
    other = connect(autocommit=False)
    other.execute("LOCK TABLE outbox.state_changes")
    page = visitor(dsn, statement_timeout=0.3).get("/workflow?entity=review")
    assert (page.status, "took longer than 0.3 s" in page.text) == (503, True)


def test_what_reads_can_change_nothing_though_its_role_may(conn: Conn, dsn: str) -> None:
    reads = Sessions(dsn, "ui")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asyncio.run(reads.run(lambda conn: conn.execute("CREATE TABLE outbox.mine ()")))
    reads.close()


def test_sessions_are_few_and_used_again(conn: Conn, dsn: str) -> None:
    reads = Sessions(dsn, "ui")

    async def many() -> set[int]:
        return set(await asyncio.gather(*(reads.run(lambda conn: conn.info.backend_pid) for _ in range(30))))

    first, again = asyncio.run(many()), asyncio.run(many())
    assert len(first) <= sessions.MOST
    assert again <= first
    (name,) = conn.execute(
        "SELECT DISTINCT application_name FROM pg_stat_activity WHERE pid = ANY (%s)", (list(first),)
    ).fetchone() or ("",)
    assert name == "outbox ui"
    reads.close()


def test_a_session_that_was_ended_is_replaced_unseen(conn: Conn, dsn: str, admin_dsn: str) -> None:
    reads = Sessions(dsn, "ui")
    first = asyncio.run(reads.run(lambda conn: conn.info.backend_pid))
    with psycopg.connect(admin_dsn) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 60000)", (first,))
    assert asyncio.run(reads.run(lambda conn: conn.info.backend_pid)) != first
    reads.close()


def test_a_transaction_leaves_nothing_in_its_session(conn: Conn, dsn: str) -> None:
    reads = Sessions(dsn, "ui", patience=7)
    seen = [asyncio.run(reads.run(lambda conn: value(conn, "SHOW statement_timeout"))) for _ in range(2)]
    assert seen == ["7s", "7s"]
    with pytest.raises(psycopg.errors.DivisionByZero):
        asyncio.run(reads.run(lambda conn: conn.execute("SELECT 1 / 0")))
    assert asyncio.run(reads.run(lambda conn: value(conn, "SELECT 1"))) == 1
    reads.close()


def test_a_server_that_stops_freezes_or_restarts_is_said_and_the_page_recovers(
    make_server: Callable[[str], PostgresServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "GRACE", 0.5)
    server = make_server("18")
    dsn = make_database(server, "shop")
    migrations.apply(dsn)
    visit = visitor(dsn, statement_timeout=60)
    assert "No pipeline is deployed here." in visit.get("/").text
    server.stop()
    page = visit.get("/")
    assert page.status == 200
    assert "Postgres can't be reached" in page.text
    assert visit.get("/workflows").status == 503
    server.start()
    assert "No pipeline is deployed here." in visit.get("/").text
    late = visitor(f"{dsn}?connect_timeout=2", statement_timeout=0.5)
    assert "No pipeline is deployed here." in late.get("/").text
    server.send(signal.SIGSTOP)
    try:
        frozen = late.get("/")
        assert frozen.status == 200
        assert "given up" in frozen.text or "can't be reached" in frozen.text
    finally:
        server.send(signal.SIGCONT)
    for _ in range(50):
        if "No pipeline is deployed here." in (page := late.get("/")).text and "given up" not in page.text:
            break
    else:
        raise AssertionError(page.text)


def test_a_schema_that_is_not_there_is_said(empty_dsn: str) -> None:
    page = visitor(empty_dsn).get("/")
    assert page.status == 200
    assert "Run: outbox migrate" in page.text
    assert visitor(empty_dsn).get("/workflows").status == 503


def test_work_that_is_given_up_before_it_began_does_not_begin(dsn: str) -> None:
    reads = Sessions(dsn, "ui", patience=0.0)
    task: Any = sessions._Task(lambda conn: 1)
    task.cut()
    with pytest.raises(Late):
        reads._work(task)
    reads.close()
