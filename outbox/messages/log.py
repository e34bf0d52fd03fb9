"""The message log as a relay reads it: windows by two snapshots, a cursor that moves when a part is done.

Nothing here knows where messages go. See sql/queries/log.sql for the method and its source (PgQ).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from ..database import statements
from ..database.dsn import engine_conninfo
from ..database.statements import array, text_array
from ..errors import TakenOver
from . import ring

SQL = statements.load("log")
log = logging.getLogger("outbox.relay")

LEASE = 5.0
"""Seconds without a beat after which another process takes a relay's name over."""

READ_AT_ONCE = 100_000
FETCH_BYTES = 4 * 2**20
MOST_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message on its way out. `payload` and `headers` are JSON text; `id` is its place in the log."""

    id: int
    message_id: str
    topic: str
    key: str | None
    payload: str | None
    headers: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Window:
    """What was committed between two snapshots; `position` is the id up to which it is done."""

    start: str
    end: str
    position: int = 0


class Log:
    """One relay's hold on the log: a connection of its own, a name, and the epoch that fences it.

    `verified` is when, by this process's clock, the last answer that the name is still ours was asked for.
    """

    def __init__(self, dsn: str, name: str, target: str, *, from_now: bool = False) -> None:
        self._dsn = engine_conninfo(dsn, "relay")
        self._name, self.target, self._from_now = name, target, from_now
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._epoch = 0
        self._rows = 10
        self.verified = 0.0

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Return the open connection, making it if there is none. It listens for new messages."""
        if self._conn is None or self._conn.closed:
            conn = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
            try:
                # What a window's end makes visible must be on disk before anything of it leaves.
                await conn.execute("SET synchronous_commit = on")
                await plan(conn)
                await conn.execute("LISTEN outbox_relay")
            except BaseException:
                await conn.close()
                raise
            self._conn = conn
        return self._conn

    async def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    async def take_over(self) -> Window | None:
        """Wait for nothing: make the name ours if it is free. Raises TakenOver if it isn't; returns the open window."""
        await self._ask("relay_register", from_now=self._from_now)
        asked = time.monotonic()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        rows = await self._ask("relay_take_over", owner=owner, target=self.target, lease=LEASE)
        if not rows:
            raise TakenOver(f"relay {self._name!r} runs elsewhere")
        self._epoch, start, end, position, foreign = rows[0]
        self.verified = asked
        if foreign:
            await self._restore()
            return await self.take_over()
        return None if end is None else Window(start, end, position)

    async def leave(self) -> None:
        """Free the name at once."""
        if self._epoch and self._conn is not None:
            await self._ask("relay_leave", epoch=self._epoch)

    async def beat(self, trouble: str | None, idle: bool) -> None:
        """Keep the name, and tell what is wrong."""
        asked = time.monotonic()
        if not await self._ask("relay_beat", epoch=self._epoch, trouble=trouble, idle=idle):
            raise TakenOver(f"relay {self._name!r} was taken over")
        self.verified = asked

    async def cut(self) -> Window | None:
        """End a window now if there is anything new."""
        rows = await self._ask("relay_cut", epoch=self._epoch)
        return Window(*rows[0]) if rows else None

    async def read(self, window: Window) -> AsyncIterator[list[Outgoing]]:
        """Yield the rest of a window in parts of bounded size, in the order of ids."""
        position, full = window.position, True
        while full:
            count = 0
            await self._declare(window, position)
            while part := await self._fetch():
                count, position = count + len(part), part[-1].id
                yield part
            await self._execute(SQL["window_close"])
            full = count == READ_AT_ONCE

    async def advance(
        self, position: int, count: int, parked: Mapping[int, tuple[Outgoing, str]], *, done: bool = False
    ) -> None:
        """Move the cursor over `count` messages; what is `parked` is kept with its reason in the same transaction."""
        messages = [message for message, _ in parked.values()]
        asked = time.monotonic()
        rows = await self._ask(
            "relay_advance",
            epoch=self._epoch,
            position=position,
            count=count,
            done=done,
            ids=array(message.id for message in messages),
            message_ids=array(message.message_id for message in messages),
            topics=text_array(message.topic for message in messages),
            keys=text_array(message.key for message in messages),
            payloads=text_array(message.payload for message in messages),
            headers=text_array(message.headers for message in messages),
            created=[message.created_at for message in messages],
            reasons=text_array(reason for _, reason in parked.values()),
        )
        if not rows:
            raise TakenOver(f"relay {self._name!r} was taken over")
        self.verified = asked

    async def blocked_keys(self, messages: Sequence[Outgoing]) -> set[str]:
        """Return those keys that have a parked message."""
        keys = {message.key for message in messages if message.key is not None}
        return {row[0] for row in await self._ask("parked_keys", keys=text_array(keys))} if keys else set()

    async def to_retry(self, strict: bool) -> list[Outgoing]:
        """Return parked messages that somebody wants sent again."""
        return [Outgoing(*row) for row in await self._ask("parked_to_retry", strict=strict)]

    async def settle_retried(self, sent: Sequence[int], parked: Mapping[int, str]) -> None:
        """Forget what was sent; what failed again keeps its new reason."""
        await self._ask("parked_settle", sent=array(sent), ids=array(parked), reasons=text_array(parked.values()))

    async def wait(self, seconds: float) -> bool:
        """Wait for new messages or for some seconds. Whatever arrives on the channel is only a reason to look."""
        async for _ in self._connected().notifies(timeout=seconds, stop_after=1):
            return True
        return False

    async def rotate(self) -> list[str]:
        """Empty what every relay has passed. See ring.py."""
        # Its transactions are none of the relay's: on a connection with them, what is read and moved meanwhile would be
        # in them too, and be undone when a child can't be locked.
        async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as conn:
            await plan(conn)
            return await ring.rotate(conn)

    async def _restore(self) -> None:
        async with self._connected().transaction():
            await self._execute(SQL["relay_restore_lock"])
            await self._execute(SQL["relay_restore_messages"])
            await self._execute(SQL["relay_restore_cursors"])
        log.warning("the database was restored: every message that is in the log is relayed, some of them again")

    async def _declare(self, window: Window, position: int) -> None:
        # A cursor's declaration takes no parameters from the server's side: they are bound here, as literals.
        with suppress(psycopg.errors.InvalidCursorName):
            await self._execute(SQL["window_close"])
        values = {"start": window.start, "end": window.end, "position": position, "limit": READ_AT_ONCE}
        async with psycopg.AsyncClientCursor(self._connected()) as cursor:
            await cursor.execute(SQL["window_read"], values)

    async def _fetch(self) -> list[Outgoing]:
        statement = sql.SQL(SQL["window_fetch"].decode()).format(rows=sql.Literal(self._rows))
        part = [Outgoing(*row) for row in await self._execute(statement)]
        if part:
            size = sum(len(message.payload or "") + 200 for message in part) / len(part)
            self._rows = max(1, min(MOST_ROWS, self._rows * 4, int(FETCH_BYTES / size)))
        return part

    async def _ask(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        return await self._execute(SQL[name], {"name": self._name, **params})

    async def _execute(
        self, statement: bytes | sql.Composed, params: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        cursor = await self._connected().execute(statement, params)
        return await cursor.fetchall() if cursor.description else []

    def _connected(self) -> psycopg.AsyncConnection[Any]:
        # Never a new one: what a window has open is lost with the connection, and `take_over` comes first.
        if self._conn is None:
            raise psycopg.OperationalError("not connected")
        return self._conn


async def plan(conn: psycopg.AsyncConnection[Any]) -> None:
    """A plan that was cached while the log was empty must not scan it when it is full. See 0005_triggers.sql."""
    await conn.execute("SET enable_seqscan = off")
    await conn.execute("SET jit = off")
