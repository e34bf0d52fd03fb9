"""`outbox doctor` on a cluster: what would lose commits at a failover, and what makes them wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import psycopg2.extras
import pytest

from kit.commands import Outbox
from kit.pipelines import value
from kit.replication import Pair
from kit.servers import DEADLINE, PostgresServer, free_port, wait_for
from outbox.database import hosts, migrations, primary
from outbox.operations import cluster
from outbox.operations.finding import Finding

Conn = psycopg.Connection[Any]
WRITE = "SELECT pg_logical_emit_message(true, 'test', '')"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        with pair.primary.admin() as admin:
            migrations.apply(admin)
            admin.execute("CREATE ROLE nosy LOGIN")
            admin.execute("CREATE ROLE hasty LOGIN")
            admin.execute("GRANT USAGE ON SCHEMA outbox TO hasty")
            admin.execute("CREATE ROLE stranger LOGIN")
        yield pair


@pytest.fixture
def admin(pair: Pair) -> Iterator[Conn]:
    with pair.primary.admin() as admin:
        yield admin


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def told(conn: Conn) -> list[str]:
    return [_told(each) for each in cluster.look(conn)]


def told_of_hosts(dsn: str) -> list[str]:
    return [_told(each) for each in cluster.hosts(dsn, asyncio.run(hosts.ask(dsn)))]


def _told(each: Finding) -> str:
    assert each.do or each.level == "ok", "each says what to do"
    return f"{each.level}: {each.what}"


@contextmanager
def setting(pair: Pair, **settings: object) -> Iterator[None]:
    names = {name: value_of(pair, name) for name in settings}
    pair._set(pair.primary, **settings)
    wait_for(lambda: all(value_of(pair, name) == str(new) for name, new in settings.items()), what="they are read")
    try:
        yield
    finally:
        pair._set(pair.primary, **names)
        wait_for(lambda: all(value_of(pair, name) == old for name, old in names.items()), what="they are read")


def value_of(pair: Pair, name: str) -> str:
    with pair.primary.admin() as admin:
        return str(value(admin, f"SHOW {name}"))


def test_a_synchronous_standby_is_as_it_should_be(admin: Conn) -> None:
    wait_for(lambda: told(admin) == [], what="the standby is a synchronous one")


def test_a_role_that_does_not_see_standbys_is_told_so(pair: Pair) -> None:
    with psycopg.connect(pair.primary.dsn(user="nosy"), autocommit=True) as conn:
        assert told(conn) == [
            "warn: this role sees neither which standbys are synchronous nor which sessions wait for them"
        ]


@pytest.mark.parametrize("user", ["postgres", "nosy"])
def test_standbys_for_which_no_commit_waits_are_found(pair: Pair, user: str) -> None:
    with setting(pair, synchronous_standby_names=""), psycopg.connect(pair.primary.dsn(user=user)) as conn:
        (what,) = told(conn)
        assert what.startswith("warn: no commit waits for a standby (")
        assert what.endswith("): a failover loses the last ones")


def test_an_asynchronous_standby_beside_a_synchronous_one_is_told(pair: Pair, admin: Conn, stack: ExitStack) -> None:
    dsn = f"host=127.0.0.1 port={pair.primary.port} user=postgres application_name="
    line = {"connection_factory": psycopg2.extras.PhysicalReplicationConnection}
    for name in ("other", "pg_receivewal"):
        follower = psycopg2.connect(dsn + name, **line)
        stack.callback(follower.close)
        # Who asks for what is written and not yet flushed is cut off, and learns of it only when it reads.
        follower.cursor().start_replication(start_lsn=value(admin, "SELECT pg_current_wal_flush_lsn()::text"))
    wait_for(lambda: value(admin, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 3)
    (what,) = told(admin)
    assert what.startswith("ok: no commit waits for standby other (127.0.0.1): after a failover to it")


def test_commits_that_wait_for_a_standby_are_found(pair: Pair, admin: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAITED", 0.0)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    pair.detach()
    try:
        with ThreadPoolExecutor() as pool, psycopg.connect(pair.primary.dsn(), autocommit=True) as writer:
            writing = pool.submit(writer.execute, WRITE)
            wait_for(lambda: value(admin, waiting), what="the COMMIT waits")
            none, wait = told(admin)
            with psycopg.connect(pair.primary.dsn(user="nosy"), autocommit=True) as conn:
                assert told(conn) == [none], "how many stream is seen by all"
            pair.attach()
            writing.result(DEADLINE)
    finally:
        pair.attach()
    assert none == "bad: synchronous_standby_names is standby, and no such standby is connected: commits wait"
    assert wait == "bad: commits wait for a synchronous standby: 1 session, for up to 0 s"


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("ALTER ROLE hasty {} synchronous_commit {}", ["off for role hasty"]),
        ("ALTER ROLE hasty IN DATABASE postgres {} synchronous_commit {}", ["off for role hasty in database postgres"]),
        ("ALTER DATABASE postgres {} synchronous_commit {}", ["off for database postgres"]),
        ("ALTER DATABASE template1 {} synchronous_commit {}", []),
        ("ALTER ROLE stranger {} synchronous_commit {}", []),
    ],
)
def test_a_role_or_database_whose_commits_promise_less_is_found(admin: Conn, statement: str, found: list[str]) -> None:
    admin.execute(statement.format("SET", "= off").encode())
    try:
        expected = [f"warn: synchronous_commit is {each}: a crash loses the last commits, which breaks guarantee G1"
                    for each in found]  # fmt: skip
        assert told(admin) == expected
        admin.execute(statement.format("SET", "= 'local'").encode())
        assert told(admin) == [each.replace("is off", "is local").replace("a crash", "a failover") for each in expected]
        admin.execute(statement.format("SET", "= 'remote_apply'").encode())
        assert told(admin) == []
    finally:
        admin.execute(statement.format("RESET", "").encode())


def test_a_session_that_waits_for_its_own_disk_only_is_found(pair: Pair) -> None:
    with psycopg.connect(f"{pair.primary.dsn()}?options=-csynchronous_commit%3Dlocal", autocommit=True) as conn:
        (what,) = told(conn)
        assert what.startswith("warn: synchronous_commit is local for this session: a failover loses")
    with psycopg.connect(f"{pair.standby.dsn()}?options=-csynchronous_commit%3Dlocal", autocommit=True) as conn:
        assert told(conn) == [], "a standby has no commits"


def test_a_single_host_needs_no_word(pair: Pair) -> None:
    assert told_of_hosts(pair.primary.dsn()) == []


def test_each_host_is_told(pair: Pair) -> None:
    standby, first, attrs = told_of_hosts(pair.hosts())
    assert standby == f"ok: 127.0.0.1, port {pair.standby.port} is a standby"
    assert first == f"ok: 127.0.0.1, port {pair.primary.port} is the primary, on timeline 1"
    assert attrs.startswith("warn: the DSN has several hosts and no target_session_attrs")
    assert told_of_hosts(pair.hosts(options="?target_session_attrs=read-write")) == [standby, first]


def test_hosts_that_are_down_refuse_or_are_of_another_system_are_told(pair: Pair, server: PostgresServer) -> None:
    down, attrs = free_port(), "target_session_attrs=read-write"
    ports = f"{pair.primary.port},{down},{server.port}"
    with psycopg.connect(pair.primary.dsn(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE only_here")
    places = "host=127.0.0.1,127.0.0.1,127.0.0.1 user=postgres"
    silent, refusing, first = told_of_hosts(f"{places} port={ports} dbname=only_here {attrs}")
    assert silent.startswith(f"warn: 127.0.0.1, port {down}: ")
    assert silent.endswith("Connection refused")
    assert refusing.endswith('database "only_here" does not exist')
    assert first.startswith("ok: ")
    _, several = told_of_hosts(f"{places} port={ports} dbname=postgres {attrs}")
    assert several.startswith("bad: the DSN leads to several databases: ")


def test_hosts_can_be_asked_while_none_takes_writes(pair: Pair) -> None:
    outbox, down = Outbox(pair.hosts(options="?target_session_attrs=read-write")), pair.primary.port
    pair.primary.stop("fast")
    try:
        done = outbox("doctor", "--json", code=1)
        found = [f"{each['level']}: {each['what']}" for each in done.json]
        assert found[0].startswith(f"warn: 127.0.0.1, port {down}: ")
        assert found[1:3] == [
            f"ok: 127.0.0.1, port {pair.standby.port} is a standby",
            "bad: none of the hosts takes writes: everything waits",
        ]
        assert "the schema is up to date" in done.out, "and the standby is looked at"
        done = outbox("status")
        assert f"none of the hosts takes writes; this is what 127.0.0.1, port {pair.standby.port} has" in done.err
        nowhere = Outbox(f"host=127.0.0.1,127.0.0.1 port={down},{free_port()} user=postgres")
        silent = nowhere("doctor", "--json", code=1).json
        assert [each["level"] for each in silent] == ["warn", "warn", "bad", "warn"]
        assert nowhere.fails("status").count("Connection refused") >= 2, "each host's answer is told"
    finally:
        pair.primary.start()


def test_two_primaries_are_found_and_the_right_one_is_named(stack: ExitStack) -> None:
    pair = stack.enter_context(Pair())
    with pair.primary.admin() as admin:
        migrations.apply(admin)
    dsn = pair.hosts(options="?target_session_attrs=read-write")
    pair.detach()
    pair.promote(move=False)
    primary._known.clear()
    (what,) = told_of_hosts(dsn)
    right, wrong = (f"127.0.0.1, port {each.port}" for each in (pair.primary, pair.standby))
    assert what == (
        f"bad: there are two primaries: {wrong} (timeline 1) and {right} (timeline 2). "
        f"Processes that have both in their DSN work on {right}"
    )
    done = Outbox(dsn)("doctor", "--json", code=1)
    assert what in [f"{each['level']}: {each['what']}" for each in done.json]
    (do,) = [each["do"] for each in done.json if each["level"] == "bad" and "two primaries" in each["what"]]
    assert do.startswith(f"stop {wrong}: ")
