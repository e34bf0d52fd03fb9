"""Reads the message log for a relay: windows between two snapshots, and a cursor that moves after each part is sent.

Nothing here depends on where messages go. sql/queries/log.sql explains the method and names its source (PgQ).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from ..database import statements
from ..database.dsn import engine_conninfo
from ..database.session import connect_async
from ..database.statements import array, text_array
from ..errors import TakenOver
from . import ring
from .target import LEASE, Lease, Outgoing, Parked

SQL = statements.load("log")
log = logging.getLogger("outbox.relay")

READ_AT_ONCE = 100_000
"""Most messages of one cursor. The server sorts them and keeps those not yet read in a temporary file."""

FETCH_BYTES = 4 * 2**20
"""Approximate bytes of payloads in a part: a relay holds them in memory, and sends them again after a crash."""

MOST_ROWS = 5_000
"""Most messages in a part, however small they are."""

_FIRST_ROWS = 10
"""Messages in the first part, before their size is known."""

_ROW_BYTES = 200
"""Approximate bytes of a message besides its payload."""


@dataclass(frozen=True, slots=True)
class Window:
    """Messages that were committed between two snapshots. Those with ids up to `position` are done."""

    start: str
    end: str
    position: int = 0


class Log:
    """Reads the log under a relay's name, on a connection of its own. The epoch is its fence after a takeover.

    `target` is what `outbox status` shows. Each answer that the name is still ours confirms `lease`.
    """

    def __init__(self, dsn: str, name: str, target: str, lease: Lease, *, from_now: bool = False) -> None:
        engine_conninfo(dsn, "relay")  # refuses an invalid DSN now
        self._dsn = dsn
        self._name, self._target, self._lease, self._from_now = name, target, lease, from_now
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._epoch = 0
        self._rows = _FIRST_ROWS

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Returns the open connection, or opens one that listens for new messages."""
        if self._conn is None or self._conn.closed:
            conn = await connect_async(self._dsn, "relay")
            try:
                # What a window's end makes visible must be on disk before any of its messages is sent.
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
        """Takes the name and returns the open window, if any. Raises TakenOver at once if the name is taken."""
        await self._ask("relay_register", from_now=self._from_now)
        asked = time.monotonic()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        rows = await self._ask("relay_take_over", owner=owner, target=self._target, lease=LEASE)
        if not rows:
            raise TakenOver(f"relay {self._name!r} runs elsewhere")
        self._epoch, start, end, position, foreign = rows[0]
        self._lease.confirm(asked)
        if foreign:
            await self._restore()
            return await self.take_over()
        return None if end is None else Window(start, end, position)

    async def leave(self) -> None:
        """Frees the name, so that another process doesn't have to wait for the end of the lease."""
        if self._epoch and self._conn is not None:
            await self._ask("relay_leave", epoch=self._epoch)

    async def beat(self, trouble: str | None, idle: bool) -> None:
        """Sends a heartbeat that keeps the name, with the current problem and whether the relay is idle."""
        asked = time.monotonic()
        if not await self._ask("relay_beat", epoch=self._epoch, trouble=trouble, idle=idle):
            raise TakenOver(f"relay {self._name!r} was taken over")
        self._lease.confirm(asked)

    async def cut(self) -> Window | None:
        """Ends a window now and returns it; None if there is nothing new."""
        rows = await self._ask("relay_cut", epoch=self._epoch)
        return Window(*rows[0]) if rows else None

    async def read(self, window: Window) -> AsyncIterator[list[Outgoing]]:
        """Yields the rest of a window in order of ids, in parts of bounded size."""
        position, full = window.position, True
        while full:
            count = 0
            await self._declare(window, position)
            while part := await self._fetch():
                count, position = count + len(part), part[-1].id
                yield part
            await self._execute(SQL["window_close"])
            full = count == READ_AT_ONCE

    async def advance(self, position: int, count: int, parked: Parked, *, done: bool = False) -> None:
        """Moves the cursor to `position`, past `count` sent messages, and parks others in the same transaction.

        `done` ends the window.
        """
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
        self._lease.confirm(asked)

    async def blocked_keys(self, messages: Sequence[Outgoing]) -> set[str]:
        """Returns the keys of these messages that have a parked message."""
        keys = {message.key for message in messages if message.key is not None}
        return {row[0] for row in await self._ask("parked_keys", keys=text_array(keys))} if keys else set()

    async def to_retry(self, strict: bool) -> list[Outgoing]:
        """Returns the parked messages that a person wants to send again."""
        return [Outgoing(*row) for row in await self._ask("parked_to_retry", strict=strict)]

    async def settle_retried(self, sent: Sequence[int], parked: Mapping[int, str]) -> None:
        """Deletes parked messages that were now sent, and updates the reason of those that failed again."""
        await self._ask("parked_settle", sent=array(sent), ids=array(parked), reasons=text_array(parked.values()))

    async def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for a notification. It is only a hint: new messages are read from the log."""
        async for _ in self._connected().notifies(timeout=seconds, stop_after=1):
            return True
        return False

    async def rotate(self) -> list[str]:
        """Empties tables that every relay has passed (see ring.py); returns those that are in use."""
        # On a connection of its own. On the relay's, reads and cursor moves in the meantime would be part of this
        # transaction, and would be rolled back when a table can't be locked.
        async with await connect_async(self._dsn, "relay") as conn:
            await plan(conn)
            return await ring.rotate(conn)

    async def _restore(self) -> None:
        async with self._connected().transaction():
            await self._execute(SQL["relay_restore_lock"])
            await self._execute(SQL["relay_restore_messages"])
            await self._execute(SQL["relay_restore_cursors"])
        log.warning("the database was restored: every message in the log is relayed, some of them again")

    async def _declare(self, window: Window, position: int) -> None:
        # DECLARE takes no server-side parameters, so they are bound here as literals.
        with suppress(psycopg.errors.InvalidCursorName):
            await self._execute(SQL["window_close"])
        values = {"start": window.start, "end": window.end, "position": position, "limit": READ_AT_ONCE}
        async with psycopg.AsyncClientCursor(self._connected()) as cursor:
            await cursor.execute(SQL["window_read"], values)

    async def _fetch(self) -> list[Outgoing]:
        statement = sql.SQL(SQL["window_fetch"].decode()).format(rows=sql.Literal(self._rows))
        part = [Outgoing(*row) for row in await self._execute(statement)]
        if part:
            size = sum(len(message.payload or "") + _ROW_BYTES for message in part) / len(part)
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
        # Never opens a new connection: a window's cursor is lost with its connection, and `take_over` must come first.
        if self._conn is None:
            raise psycopg.OperationalError("not connected")
        return self._conn


async def plan(conn: psycopg.AsyncConnection[Any]) -> None:
    """Keeps a connection from plans that scan the log.

    A plan cached while the log was empty would still be used when it is full.
    """
    await conn.execute("SET enable_seqscan = off")
    await conn.execute("SET jit = off")
