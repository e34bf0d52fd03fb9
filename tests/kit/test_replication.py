"""The pair of servers does what the tests of failovers rely on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from kit.pipelines import value
from kit.replication import Pair, is_primary
from kit.servers import DEADLINE, wait_for


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        with pair.primary.admin() as admin:
            admin.execute("CREATE TABLE kept (n int)")
        yield pair


def write(dsn: str, n: int) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("INSERT INTO kept VALUES (%s)", (n,))


def kept(dsn: str) -> set[int]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        return {n for (n,) in conn.execute("SELECT n FROM kept")}


def test_a_commit_waits_for_a_standby_that_is_detached(pair: Pair) -> None:
    pair.detach()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(write, pair.dsn(), 1)
        wait_for(lambda: value_of(pair, waiting), what="the COMMIT waits")
        pair.attach()
        writing.result(DEADLINE)
    assert 1 in kept(pair.dsn())


def test_a_frozen_primary_comes_back_as_a_zombie_and_then_as_a_standby(pair: Pair) -> None:
    write(pair.dsn(), 2)
    pair.freeze()
    pair.promote()
    pair.zombie()
    wait_for(lambda: is_primary(pair.standby), what="the zombie answers")
    write(pair.standby.dsn(), 4)  # it takes commits, and waits for no standby
    assert is_primary(pair.primary), "there are two primaries"
    pair.rejoin()
    write(pair.dsn(), 5)
    assert {2, 5} <= kept(pair.dsn())
    assert 4 not in kept(pair.dsn()), "what only the zombie had is gone"


def test_a_switch_leaves_a_server_that_is_read_only(pair: Pair) -> None:
    pair.switch(move=False)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(pair.dsn(), 6)
    pair.move()
    write(pair.dsn(), 7)


def test_what_the_standby_had_not_is_lost_with_an_asynchronous_primary(pair: Pair) -> None:
    write(pair.dsn(), 9)
    pair.detach()
    pair.primary.configure(synchronous_standby_names="")
    pair.primary.send(signal.SIGHUP)
    wait_for(lambda: value_of(pair, "SHOW synchronous_standby_names") == "", what="the setting is taken")
    write(pair.dsn(), 8)
    pair.kill()
    pair.promote()
    assert 8 not in kept(pair.hosts(options="?target_session_attrs=read-write"))
    assert 9 in kept(pair.dsn())


def value_of(pair: Pair, query: str) -> object:
    with pair.primary.admin() as admin:
        return value(admin, query)
