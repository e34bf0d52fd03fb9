"""What each host of a DSN says of itself, and which of them this process takes for the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from kit.replication import Pair
from kit.servers import PostgresServer, free_port, wait_for
from outbox.database import hosts, primary
from outbox.database.hosts import Standing
from outbox.database.session import connect, connect_async

ROLE = "nosy"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(synchronous=False) as pair:
        with pair.primary.admin() as admin:
            admin.execute(f"CREATE ROLE {ROLE} LOGIN".encode())
        wait_for(lambda: not ask(pair.standby.dsn(user=ROLE))[0].refuses, what="the standby has the role")
        yield pair


@pytest.fixture(scope="module")
def split(pair: Pair) -> Pair:
    """Two primaries: the second host of the DSN is the right one."""
    pair.detach()
    pair.promote(move=False)
    return pair


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    primary._known.clear()
    yield
    primary._known.clear()


def ask(dsn: str) -> list[Standing]:
    return asyncio.run(hosts.ask(dsn))


def look(dsn: str) -> primary.Primary:
    known = asyncio.run(primary.look(dsn))
    assert known is not None
    return known


def port(dsn: str) -> int:
    with connect(dsn, "test") as conn:
        return conn.info.port


def test_each_host_says_whether_it_takes_writes_and_on_which_timeline(pair: Pair) -> None:
    first, second = ask(pair.hosts(user=ROLE))
    assert (first.takes_writes, first.timeline, first.in_recovery) == (True, 1, False)
    assert (second.takes_writes, second.timeline, second.in_recovery) == (False, 0, True)
    assert first.system == second.system != ""
    assert first.server != second.server


def test_a_role_that_may_not_see_the_system_is_answered_the_rest(pair: Pair) -> None:
    with pair.primary.admin() as admin:
        admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        try:
            (found,) = ask(pair.primary.dsn(user=ROLE))
        finally:
            admin.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")
    assert (found.trouble, found.system, found.timeline, found.takes_writes) == (None, "", 1, True)


def test_a_primary_that_is_kept_read_only_takes_no_writes(pair: Pair) -> None:
    (found,) = ask(f"{pair.primary.dsn()}?options=-c%20default_transaction_read_only%3Don")
    assert (found.takes_writes, found.timeline, found.in_recovery) == (False, 1, False)


@pytest.mark.parametrize(
    ("dsn", "kinds"),
    {
        "nothing listens": ("host=127.0.0.1 port={free}", ""),
        "no such host": ("host=no-such-host.invalid", "unknown"),
        "no such socket": ("host=/tmp/no-such-folder", ""),
        "no such database": ("host=127.0.0.1 port={port} dbname=nope user=postgres", "refuses"),
        "no such user": ("host=127.0.0.1 port={port} dbname=postgres user=nope", "refuses"),
    }.values(),
    ids=["nothing listens", "no such host", "no such socket", "no such database", "no such user"],
)
def test_a_host_that_gives_no_session_says_why(pair: Pair, dsn: str, kinds: str) -> None:
    (found,) = ask(dsn.format(port=pair.primary.port, free=free_port()))
    assert found.trouble
    assert not found.takes_writes
    assert [kind for kind in ("refuses", "starting", "unknown") if getattr(found, kind)] == kinds.split()


def test_a_host_that_hangs_is_given_up_and_the_others_are_asked(pair: Pair) -> None:
    pair.freeze()
    try:
        first, second = ask(pair.hosts())
    finally:
        pair._thaw(pair.primary)
    assert first.trouble
    assert second.in_recovery


@pytest.mark.parametrize(
    ("dsn", "found"),
    [
        ("host=a", ["a:5432"]),
        ("host=a,b port=1,2", ["a:1", "b:2"]),
        ("host=a,b port=3", ["a:3", "b:3"]),
        ("host=a,b hostaddr=10.0.0.1,10.0.0.2", ["10.0.0.1:5432", "10.0.0.2:5432"]),
        ("hostaddr=10.0.0.1,10.0.0.2 port=1,2", ["10.0.0.1:1", "10.0.0.2:2"]),
        ("postgresql://u@a:1,[::1]:2/d", ["a:1", "::1:2"]),
        ("host=/run/a,/run/b", ["/run/a:5432", "/run/b:5432"]),
        ("dbname=x", [":5432"]),
        ("host=a,b hostaddr=10.0.0.1", []),
    ],
)
def test_the_hosts_of_a_dsn_are_listed_as_libpq_reads_them(
    monkeypatch: pytest.MonkeyPatch, dsn: str, found: list[str]
) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    assert [f"{host.address or host.name}:{host.port}" for host in hosts.listed(given)] == found


def test_the_environment_counts_as_a_part_of_the_dsn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", "1,2")
    assert [str(host) for host in hosts.listed({})] == ["a, port 1", "b, port 2"]


def test_nothing_is_asked_of_a_single_host(pair: Pair) -> None:
    assert asyncio.run(primary.look(pair.primary.dsn())) is None
    assert asyncio.run(primary.look(f"host=localhost port={pair.primary.port}")) is None, "one machine, two addresses"


def test_with_one_primary_the_dsn_stays_as_it_is(pair: Pair) -> None:
    dsn = pair.hosts()
    look(dsn)
    assert primary.narrowed(dsn) == dsn
    assert port(dsn) == pair.primary.port


def test_of_two_primaries_the_one_on_the_higher_timeline_is_taken(split: Pair) -> None:
    dsn = split.hosts(options="?target_session_attrs=read-write")
    assert port(dsn) == split.standby.port, "libpq takes the first one"
    look(dsn)
    assert port(dsn) == split.primary.port
    assert port(f"{dsn}&load_balance_hosts=random") == split.primary.port


def test_a_role_that_may_not_see_the_system_takes_the_higher_timeline_too(split: Pair) -> None:
    dsn = split.hosts(user=ROLE, options="?target_session_attrs=read-write")
    with split.primary.admin() as new, split.standby.admin() as old:
        for admin in (new, old):
            admin.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        try:
            look(dsn)
            assert port(dsn) == split.primary.port
        finally:
            for admin in (new, old):
                admin.execute("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


def test_a_former_primary_is_avoided_while_the_right_one_is_down(split: Pair) -> None:
    dsn = split.hosts(options="?target_session_attrs=read-write")
    look(dsn)
    split.primary.stop("fast")
    try:
        look(dsn)
        with pytest.raises(psycopg.OperationalError, match="takes writes on timeline 1, and the primary is on 2"):
            port(dsn)
    finally:
        split.primary.start()
    assert port(dsn) == split.primary.port


def test_a_former_primary_that_was_promoted_again_is_taken(split: Pair) -> None:
    """What was known of it is older than its promotion: a session that arrives there finds out."""
    dsn = split.hosts()
    known = look(dsn)
    (former,) = known.avoid
    (promoted,) = (host for host in known.hosts if host != former)
    known.avoid = {promoted: "it was a former primary at the last look"}
    with pytest.raises(psycopg.OperationalError, match="takes writes on timeline 1, and the primary is on 2"):
        port(dsn)
    assert port(dsn) == split.primary.port
    assert list(known.avoid) == [former]


def test_a_session_on_a_former_primary_that_came_back_between_two_looks_is_refused(split: Pair) -> None:
    dsn = split.hosts(options="?target_session_attrs=read-write")
    known = look(dsn)
    known.avoid.clear()  # as if it was down at the last look
    with pytest.raises(psycopg.OperationalError, match="takes writes on timeline 1, and the primary is on 2"):
        port(dsn)

    async def port_async() -> int:
        async with await connect_async(dsn, "test") as conn:
            return conn.info.port

    assert asyncio.run(port_async()) == split.primary.port, "and the next one is on the right server"


def test_a_former_primary_that_has_become_a_standby_is_avoided_no_more(split: Pair) -> None:
    dsn = split.hosts()
    known = look(dsn)
    (former,) = known.avoid
    known.learn([Standing(former, system="1"), Standing(known.hosts[1], system="1", timeline=2, read_only=False)])
    assert known.avoid == {}


def test_a_server_of_another_system_is_never_gone_to(split: Pair, server: PostgresServer) -> None:
    ours = f"127.0.0.1:{split.primary.port}"
    dsn = f"postgresql://postgres@{ours},127.0.0.1:{server.port}/postgres"
    known = look(dsn)
    assert [host.port for host in known.avoid] == [str(server.port)]
    split.primary.stop("fast")
    try:
        look(dsn)
        with pytest.raises(psycopg.OperationalError):
            port(dsn)
    finally:
        split.primary.start()
    assert port(dsn) == split.primary.port


def test_with_equal_timelines_a_process_stays_where_it_is() -> None:
    with Pair(synchronous=False) as pair:
        dsn = pair.hosts(options="?target_session_attrs=read-write")
        look(dsn)
        twin = pair.standby
        twin.stop("fast")
        (twin.data / "standby.signal").unlink()
        twin.start()  # a second primary, though nobody has promoted it
        assert [each.takes_writes for each in ask(dsn)] == [True, True]
        assert port(dsn) == pair.primary.port
        known = look(dsn)
        assert not known.avoid
        known.stand = known.hosts[1]  # it stood there before the other one came
        assert port(dsn) == twin.port


def test_each_address_of_a_name_counts_as_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"db": ["10.0.0.1", "10.0.0.2", "10.0.0.1"], "localhost": ["::1", "127.0.0.1"]}

    async def look_up(name: str) -> list[str]:
        return found[name]

    monkeypatch.setattr(hosts, "_look_up", look_up)
    several = asyncio.run(hosts.resolved("host=db,localhost port=1,2"))
    assert [(host.address, host.port) for host in several] == [("10.0.0.1", "1"), ("10.0.0.2", "1"), ("::1", "2")]
    assert several[1].params == {"host": "db", "hostaddr": "10.0.0.2", "port": "1"}, "certificates are for the name"
