"""The engine's connections: no session is left behind, whatever fails or is cancelled between connecting and closing."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kit.pipelines import no_session_is_left
from outbox.database.link import Link
from outbox.messages.log import Log
from outbox.messages.relay import Relay
from outbox.messages.target import Lease, Target

Conn = psycopg.Connection[Any]


def test_tasks_that_share_a_link_make_one_connection(dsn: str, conn: Conn) -> None:
    async def together() -> int:
        link = Link(dsn, "test")
        await asyncio.gather(*(link.execute(b"SELECT 1", {}) for _ in range(3)))
        await link.close()
        return link.connections

    assert asyncio.run(together()) == 1
    assert no_session_is_left(conn)


def test_a_log_whose_first_statement_is_cancelled_closes_its_connection(
    dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    async def connect() -> None:
        log = Log(dsn, "default", "test", Lease())
        monkeypatch.setattr(psycopg.AsyncConnection, "execute", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await log.connect()
        assert no_session_is_left(conn)

    asyncio.run(connect())


def test_a_relay_that_may_not_relay_says_so_and_closes_its_connection(dsn: str, conn: Conn) -> None:
    class Nowhere(Target):
        async def deliver(self, messages: Any, stopped_keys: set[str]) -> dict[int, Any]:
            raise AssertionError("nothing is to be sent")

        async def close(self) -> None: ...

    conn.execute("REVOKE UPDATE ON outbox.relays FROM outbox_owner")
    relay = Relay(dsn, Nowhere("nowhere"))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        asyncio.run(relay.run())
    assert no_session_is_left(conn)
