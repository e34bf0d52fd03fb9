"""Sessions are let go of together; and a connection finds the server that can be written to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from kit.databases import OWNER
from kit.pipelines import no_session_is_left, value
from kit.proxy import Proxy
from kit.servers import DEADLINE, free_port, wait_for
from outbox.database import connection_group as letting_go
from outbox.database import hosts, primary
from outbox.database.connection_group import READ_ONLY, ConnectionGroup
from outbox.database.dsn import engine_conninfo, host_last
from outbox.database.link import Link, first_line
from outbox.database.pool import Pool
from outbox.database.session import connect, connect_async

Conn = psycopg.Connection[Any]
SLEEP = b"SELECT pg_sleep(600)"


def test_a_server_that_is_slow_is_kept_when_there_is_no_other_primary(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence decides, and no impatience: all is asked again and again, and nothing is let go of."""
    monkeypatch.setattr(letting_go, "DOUBT", 0.02)
    asked, ask = [], hosts.ask_one

    async def noted(dsn: str, host: hosts.Host) -> hosts.Standing:
        asked.append(await ask(dsn, host))
        return asked[-1]

    monkeypatch.setattr(hosts, "ask_one", noted)
    conn.execute("SELECT pg_advisory_lock(1)")

    async def main() -> None:
        await primary.look(dsn)
        together = ConnectionGroup()
        link = Link(dsn, "test", group=together)
        await link.connection()
        with together.within(3600):
            waiting = asyncio.create_task(link.execute(b"SELECT 1 FROM pg_advisory_lock(1)", {}))
            await asyncio.to_thread(wait_for, lambda: len(asked) >= 3, what="the server was asked about three times")
            conn.execute("SELECT pg_advisory_unlock(1)")
            assert await asyncio.wait_for(waiting, DEADLINE) == [(1,)]
        assert link.connections == 1
        await link.close()

    asyncio.run(main())
    assert {each.timeline for each in asked} == {1}


def through(proxy: Proxy, dsn: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, host=proxy.host, port=proxy.port)


def test_statements_of_all_colours_fail_when_their_sessions_are_cut(dsn: str, conn: Conn) -> None:
    together, failed = ConnectionGroup(), []

    def in_a_thread() -> None:
        with connect(dsn, "test", group=together) as mine:
            try:
                mine.execute(SLEEP)
            except psycopg.OperationalError as error:
                failed.append(error)

    async def in_the_loop() -> None:
        link = Link(dsn, "test", group=together)
        try:
            await link.execute(SLEEP, {})
        except psycopg.OperationalError as error:
            failed.append(error)
        assert (await link.execute(b"SELECT 1", {}), link.connections) == ([(1,)], 2), "it connects again"
        await link.close()

    async def main() -> None:
        thread = threading.Thread(target=in_a_thread)
        thread.start()
        running = asyncio.create_task(in_the_loop())
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        await asyncio.to_thread(wait_for, lambda: value(conn, asleep) == 2)
        together.cut("a test")
        await asyncio.wait_for(running, DEADLINE)
        await asyncio.to_thread(thread.join)

    asyncio.run(main())
    assert len(failed) == 2
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert no_session_is_left(conn)


def test_a_session_that_was_cut_is_not_used_again(dsn: str, conn: Conn) -> None:
    async def main() -> None:
        together = ConnectionGroup()
        link, pool = Link(dsn, "test", group=together), Pool(dsn, "test", together)
        await link.connection()
        async with pool.connection() as first:
            pass
        together.cut("a test")
        assert await link.execute(b"SELECT 1", {}) == [(1,)]
        async with pool.connection() as second:
            assert second is not first
        assert first.closed
        await link.close()
        await pool.close()

    asyncio.run(main())
    assert no_session_is_left(conn)


def test_a_server_that_is_silent_from_the_beginning_is_left_as_well(
    dsn: str, silent: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets us in, and then answers nothing: no heartbeat has begun that could tell."""
    monkeypatch.setattr("outbox.database.session.PATIENCE", 0.3)
    tie = ConnectionGroup.add

    def silently(self: ConnectionGroup, conn: Any, *arguments: Any, **options: Any) -> Any:
        silent.silent = True
        return tie(self, conn, *arguments, **options)

    monkeypatch.setattr(ConnectionGroup, "add", silently)

    async def main() -> None:
        with pytest.raises(psycopg.OperationalError):
            await asyncio.wait_for(connect_async(through(silent, dsn), "test"), DEADLINE)

    asyncio.run(main())


def test_sessions_that_were_left_are_counted_until_they_have_ended(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letting_go, "MOST_LEFT", 2)
    monkeypatch.setattr(letting_go, "ASK_EVERY", 0.0)
    together = ConnectionGroup()
    left = [connect(dsn, "test", group=together) for _ in range(2)]
    for each in left:
        each.pgconn.send_query(SLEEP)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    wait_for(lambda: value(conn, asleep) == 2)
    together.cut("a test")
    for _ in range(5):
        with pytest.raises(psycopg.OperationalError, match=r"2 sessions that were let go of .*waits for PgSleep"):
            connect(dsn, "test", group=together)
    connect(dsn, "test").close()  # another process has left none
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' LIMIT 1")
    wait_for(lambda: value(conn, asleep) == 1)
    connect(dsn, "test", group=together).close()
    for each in left:
        each.close()
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert no_session_is_left(conn)


def test_a_process_asks_once_in_a_while_whether_they_have_ended(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = ConnectionGroup()
    monkeypatch.setattr(letting_go, "ASK_EVERY", 600.0)
    together._full, together._asked = "2 sessions", time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="2 sessions"):
        connect("host=127.0.0.1 port=1", "test", group=together)  # without a connection, which would be refused
    together._asked -= 601
    connect(dsn, "test", group=together).close()
    connect(dsn, "test", group=together).close()  # none is left there


@pytest.fixture
def read_only(admin_dsn: str, dsn: str) -> Callable[[str], None]:
    def read_only(of: str) -> None:
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            name = admin.info.dbname
            what = {"database": f"DATABASE {name}", "role": f"ROLE {OWNER} IN DATABASE {name}"}[of]
            admin.execute(f"ALTER {what} SET default_transaction_read_only = on".encode())

    return read_only


@pytest.mark.parametrize("of", ["database", "role"])
@pytest.mark.parametrize("pooled", [False, True])
def test_a_link_says_why_a_server_will_not_do(
    dsn: str, read_only: Callable[[str], None], of: str, pooled: bool
) -> None:
    read_only(of)

    async def main() -> str:
        link = Link(dsn, "test", pooled=pooled)
        with pytest.raises(psycopg.Error) as caught:
            await link.execute(b"SELECT 1", {})
        return first_line(caught.value)

    assert READ_ONLY in asyncio.run(main())
    connect(dsn, "test", pooled=True, read_only=True).close()  # what only reads may do so there


def test_a_link_closes_at_the_first_word_that_a_server_is_read_only(dsn: str, conn: Conn) -> None:
    async def main() -> None:
        together = ConnectionGroup()
        writes, reads = Link(dsn, "test", group=together), Link(dsn, "test", group=together)
        await reads.execute(b"SELECT 1", {})
        await writes.execute(b"SET default_transaction_read_only = on", {})
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await writes.execute(b"DELETE FROM outbox.jobs", {})
        assert not writes.is_open
        await asyncio.to_thread(no_session_is_left, conn)
        await reads.close()

    asyncio.run(main())


def test_several_hosts_are_tried_until_one_can_be_written_to(dsn: str, read_only: Callable[[str], None]) -> None:
    given = conninfo_to_dict(dsn)
    hosts = psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1,127.0.0.1", port=f"{free_port()},{given['port']}")
    for pooled in (False, True):
        with connect(hosts, "test", pooled=pooled) as found:
            assert found.info.port == int(given["port"])
    read_only("database")
    with connect(hosts, "test", pooled=True, read_only=True) as found:
        assert found.info.port == int(given["port"]), "one that can be read is better than none"
    with pytest.raises(psycopg.Error) as caught:
        connect(hosts, "test")
    told = first_line(caught.value)
    assert "refused" in told, "what each of them has said"
    assert READ_ONLY in told


def test_what_the_user_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(dsn: str) -> dict[str, Any]:
        return conninfo_to_dict(engine_conninfo(dsn, "test", writable=True))

    one, two = made("host=a"), made("host=a,b")
    assert (one["target_session_attrs"], one["connect_timeout"]) == ("read-write", "10")
    assert (two["target_session_attrs"], two["connect_timeout"]) == ("read-write", "3")
    said = made("host=a,b target_session_attrs=any connect_timeout=7 tcp_user_timeout=1")
    assert (said["target_session_attrs"], said["connect_timeout"], said["tcp_user_timeout"]) == ("any", "7", "1")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert "target_session_attrs" not in made("host=a")


@pytest.mark.parametrize(
    ("dsn", "host", "port", "then"),
    [
        ("host=a,b,c port=1,2,3", "a", "1", ("b,c,a", "2,3,1")),
        ("host=a,b", "a", "5432", ("b,a", None)),
        ("postgresql://a:1,b:2/x", "b", "2", ("a,b", "1,2")),
        ("host=a,a port=1,2", "a", "1", ("a,a", "2,1")),
        ("host=a,b port=7", "a", "7", ("b,a", "7")),
        ("host=a,b port=1,", "b", "5432", ("a,b", "1,")),
        ("host=a port=1", "a", "1", ("a", "1")),
        ("host=a,b port=1,2,3", "a", "1", ("a,b", "1,2,3")),
    ],
)
def test_a_host_that_was_let_go_of_comes_last(dsn: str, host: str, port: str, then: tuple[str, str | None]) -> None:
    found = conninfo_to_dict(host_last(dsn, host, port))
    assert (found.get("host"), found.get("port")) == then
