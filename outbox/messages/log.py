"""Reads the message log for a relay: windows between two snapshots, and a cursor that moves after each part is sent.

Nothing here depends on where messages go. sql/queries/log.sql explains the method and names its source (PgQ).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from ..database import migrations, startup, statements
from ..database.connection_group import PATIENCE, ConnectionGroup
from ..database.given import Dsn, require_readable
from ..database.link import Link
from ..database.session import WORKING, connect_async
from ..database.statements import array, text_array
from ..errors import TakenOver
from ..process.service import Service
from . import ring
from .relay_settings import Other, Settings, check
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

LEAVE_WITHIN = 2.0
"""Seconds in which a relay that ends tries to free its name: else its lease's end does it."""

_PLANNING = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "jit": "off"}
"""Keeps sessions from plans that scan the log, or what is beside it: one that was cached while it was empty would be
used when it is full.
"""


@dataclass(frozen=True, slots=True)
class Window:
    """Messages that were committed between two snapshots. Those with ids up to `position` are done."""

    start: str
    end: str
    position: int = 0


class Log:
    """Reads the log under a relay's name, on a connection of its own.

    Epoch and nonce fence what another process has taken over. `target` is what `outbox status` shows; `settings` say
    what is delivered and where to: see relay_settings.py. Each answer that the name is still ours confirms `lease`.
    """

    def __init__(
        self,
        dsn: Dsn,
        name: str,
        target: str,
        lease: Lease,
        *,
        from_now: bool = False,
        settings: Settings | None = None,
        change_settings: bool = False,
    ) -> None:
        require_readable(dsn, "relay")
        self._dsn = dsn
        self._settings, self._change = dict(settings or {"target": target}), change_settings
        self._name, self._target, self._lease, self._from_now = name, target, lease, from_now
        self._conn: psycopg.AsyncConnection[Any] | None = None
        # Heartbeats have a connection of their own: a window may take long, but a beat that is not answered tells that
        # the server hangs.
        self._group = ConnectionGroup()
        self._beside = Link(dsn, "relay", settings=_PLANNING, group=self._group)
        self._epoch, self._nonce = 0, uuid4()  # a new one for each run
        self._rows = _FIRST_ROWS

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Returns the open connection, or opens one that listens for new messages."""
        if self._conn is None or self._conn.closed:
            # What a window's end makes visible must be on disk before anything of it leaves.
            settings = {**WORKING, **_PLANNING, "synchronous_commit": "on"}
            conn = await connect_async(self._dsn, "relay", settings=settings, group=self._group)
            try:
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
        await self._beside.close()

    async def begin(self, service: Service, *, patient: bool) -> None:
        """Waits for a primary, and checks its schema: see startup.py."""
        self._epoch, self._nonce = 0, uuid4()
        await startup.begin(self._dsn, service, migrations.require, group=self._group, patient=patient)

    async def watch(self) -> None:
        """Lets go, for ever, of a database that is not the primary."""
        await self._group.watch()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Is a block in which the database is let go of when it doesn't answer within so many seconds."""
        return self._group.within(seconds)

    async def take_over(self) -> Window | None:
        """Takes the name and returns the window that is open, if any.

        Raises TakenOver at once if the name is taken, and SettingsError if it has others and has not drained.
        """
        told = {"settings": Jsonb(self._settings), "change": self._change}
        await self._ask("relay_register", from_now=self._from_now, **told)
        asked = time.monotonic()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        rows = await self._ask("relay_take_over", owner=owner, target=self._target, lease=LEASE, **told)
        if not rows:
            if not self._change:
                await self._check_settings(told)
            raise TakenOver(f"relay {self._name!r} runs elsewhere")
        self._epoch, start, end, position, foreign = rows[0]
        self._lease.confirm(asked)
        if foreign:
            await self._restore()
            return await self.take_over()
        return None if end is None else Window(start, end, position)

    async def _check_settings(self, told: Mapping[str, Any]) -> None:
        rows = await self._ask("relay_settings", lease=LEASE, **told)
        had, known, runs, drained = rows[0][:4]
        others = [Other(*row[4:]) for row in rows if row[4] is not None]
        check(self._name, self._settings, had=had, known=known, runs=runs, drained=drained, others=others)

    async def leave(self) -> None:
        """Frees the name, so that another process doesn't have to wait for the end of the lease."""
        if self._epoch and self._conn is not None:
            with self._group.within(LEAVE_WITHIN):
                await self._ask("relay_leave", epoch=self._epoch)

    async def beat(self, trouble: str | None, idle: bool) -> None:
        """Sends a heartbeat that keeps the name, with the current problem and whether the relay is idle."""
        asked = time.monotonic()
        told = {"name": self._name, "epoch": self._epoch, "nonce": self._nonce, "trouble": trouble, "idle": idle}
        await self._beside.connection()
        with self._group.within(PATIENCE):
            rows = await self._beside.execute(SQL["relay_beat"], told)
        if not rows:
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
        messages = [unsent.message for unsent in parked.values()]
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
            created=text_array(message.created_at.isoformat() for message in messages),
            reasons=text_array(unsent.reason for unsent in parked.values()),
            routing_keys=text_array(unsent.routing_key for unsent in parked.values()),
            workflows=text_array(message.workflow_id for message in messages),
            waits=text_array(None if unsent.waits is None else str(unsent.waits) for unsent in parked.values()),
        )
        if not rows:
            raise TakenOver(f"relay {self._name!r} was taken over")
        self._lease.confirm(asked)

    async def wait(self, seconds: float) -> bool:
        """Waits up to `seconds` for a notification. It is only a hint: new messages are read from the log."""
        async for _ in self._connected().notifies(timeout=seconds, stop_after=1):
            return True
        return False

    async def rotate(self) -> dict[str, str]:
        """Empties what every relay has passed (see ring.py); returns the tables that can't be emptied, and why."""
        # On a connection of its own: on another one, what is asked there meanwhile would be in its transactions, and be
        # rolled back when a table can't be locked.
        settings = {**WORKING, **_PLANNING}
        async with await connect_async(self._dsn, "relay", settings=settings, group=self._group) as conn:
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

    async def ask(self, statement: bytes, **params: Any) -> list[tuple[Any, ...]]:
        """Executes a statement on the relay's connection; `name` and `nonce` are parameters of it."""
        return await self._execute(statement, {"name": self._name, "nonce": self._nonce, **params})

    async def _ask(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        return await self.ask(SQL[name], **params)

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
