"""What hangs while one connects to it does not keep a process from what has taken its place."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kit.pipelines import no_session_is_left
from kit.proxy import Proxy
from kit.servers import DEADLINE
from outbox.database import attempts, primary, session
from outbox.database.connection_group import ConnectionGroup
from outbox.database.hosts import Host
from outbox.database.session import connect_async

Conn = psycopg.Connection[Any]


class Silence:
    """A port on loopback where connections are accepted and nothing is ever said; `full`: not even accepted."""

    def __init__(self, full: bool) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=0 if full else 64)
        self.port = self.listening.getsockname()[1]
        # Connections beyond the backlog get no answer to their SYN: they hang as on a host that drops it.
        self._fillers = [socket.socket() for _ in range(8 if full else 0)]
        for each in self._fillers:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", self.port))

    def close(self) -> None:
        for each in (self.listening, *self._fillers):
            each.close()


@pytest.fixture(params=["silent", "dropped"])
def hung(request: pytest.FixtureRequest) -> Iterator[Silence]:
    silence = Silence(request.param == "dropped")
    yield silence
    silence.close()


@pytest.fixture
def moving(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that the name of the host leads to, one attempt after the other; the last one for all others."""
    monkeypatch.setattr(attempts, "ANOTHER_AFTER", 0.1)
    ports: list[int] = []
    tried = iter(range(1_000_000))

    def narrowed(conninfo: str) -> str:
        port = ports[min(next(tried), len(ports) - 1)]
        return make_conninfo(conninfo, host="127.0.0.1", hostaddr="", port=port, connect_timeout=str(int(DEADLINE)))

    monkeypatch.setattr(primary, "narrowed", narrowed)
    return ports


def port_of(dsn: str) -> int:
    return int(conninfo_to_dict(dsn)["port"])


def test_a_host_that_hangs_is_left_for_where_its_name_leads_now(
    dsn: str, conn: Conn, hung: Silence, moving: list[int]
) -> None:
    moving += [hung.port, hung.port, port_of(dsn)]

    async def main() -> None:
        async with await connect_async(dsn, "test") as opened:
            assert opened.info.port == port_of(dsn)
        assert len(asyncio.all_tasks()) == 1, "the attempts that hung have ended"

    asyncio.run(main())
    assert no_session_is_left(conn)


def test_a_pooler_that_lets_one_in_and_then_answers_nothing_is_left_too(
    dsn: str, conn: Conn, silent: Proxy, moving: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moving += [silent.port, port_of(dsn)]
    add, begun = ConnectionGroup.add, []

    def silently(self: ConnectionGroup, conn: Any, *arguments: Any, **options: Any) -> Any:
        begun.append(conn.info.port)
        silent.silent = True
        return add(self, conn, *arguments, **options)

    monkeypatch.setattr(ConnectionGroup, "add", silently)

    async def main() -> None:
        async with await connect_async(dsn, "test", pooled=True) as opened:
            assert opened.info.port == port_of(dsn)

    asyncio.run(main())
    assert begun == [silent.port, port_of(dsn)]
    silent.silent = False
    assert no_session_is_left(conn)


def test_a_server_that_is_slow_gets_its_time_and_what_was_tried_beside_it_is_closed(
    dsn: str, conn: Conn, hung: Silence, moving: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt succeeds while others hang: it counts, and they end."""
    moving += [port_of(dsn), hung.port]
    open_, others = psycopg.AsyncConnection.connect, asyncio.Event()

    async def slowly(conninfo: str, **options: Any) -> Any:
        if conninfo_to_dict(conninfo)["port"] == str(hung.port):
            others.set()
        else:
            await others.wait()
        return await open_(conninfo, **options)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", slowly)

    async def main() -> None:
        async with await connect_async(dsn, "test") as opened:
            assert opened.info.port == port_of(dsn)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert no_session_is_left(conn)


def test_a_refusal_is_told_at_once_by_one_attempt(dsn: str, moving: list[int]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        moving += [bound.getsockname()[1], port_of(dsn)]
        with pytest.raises(psycopg.OperationalError, match="refused"):
            asyncio.run(connect_async(dsn, "test"))


def test_an_attempt_that_is_refused_beside_one_that_hangs_is_made_again(
    dsn: str, hung: Silence, moving: list[int]
) -> None:
    """As between the end of one server and the start of the next."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        moving += [hung.port, bound.getsockname()[1], bound.getsockname()[1], port_of(dsn)]

        async def main() -> None:
            async with await connect_async(dsn, "test") as opened:
                assert opened.info.port == port_of(dsn)

        asyncio.run(main())


def test_one_that_is_stopped_meanwhile_leaves_no_attempt(dsn: str, hung: Silence, moving: list[int]) -> None:
    moving += [hung.port]

    async def main() -> None:
        connecting = asyncio.create_task(connect_async(dsn, "test"))
        while len(asyncio.all_tasks()) < 4:
            await asyncio.sleep(0.02)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_of_a_name_with_several_addresses_each_gets_a_short_time(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def timeout() -> str:
        (conninfo, _), *_ = session._ways("host=db.example", "test", ConnectionGroup(), pooled=False)
        return str(conninfo_to_dict(conninfo)["connect_timeout"])

    known = primary.Primary()
    monkeypatch.setitem(primary._known, primary._key("host=db.example"), known)
    assert timeout() == "10"
    known.hosts = [Host("db.example", address, "5432") for address in ("192.0.2.1", "192.0.2.2")]
    assert timeout() == "3"
