"""One connection of the engine, which comes back: through restarts, cuts and fail-overs, with back-off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..service import Delays
from ..texts import printable
from .dsn import engine_conninfo

log = logging.getLogger("outbox.database")

# Plans of the engine's own sessions: prepared once while tables may be empty, right when they are full.
PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# Idle in a transaction for longer than the user's function may take plus this many seconds, the session is ended by
# Postgres: a process that froze holding row locks must not block those who take over.
_IDLE_GRACE = 5.0

_TEMPORARY_CLASSES = {"08", "40", "53", "57", "58"}
_TEMPORARY_STATES = {"25006", "55P03", "55000"}

_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
"""Seconds before a statement is tried again, doubled each time: a restart is over soon, a fail-over takes longer."""


def temporary(error: BaseException) -> bool:
    """Whether the same statement may succeed later: a lost connection, a restart, a deadlock, a full disk."""
    if isinstance(error, OSError | psycopg.InterfaceError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate[:2] in _TEMPORARY_CLASSES or error.sqlstate in _TEMPORARY_STATES


def threshold(pooled: bool) -> int | None:
    """After how many uses psycopg prepares a statement; None, where the session isn't ours: never, whoever asks."""
    return None if pooled else 5


def idle_ms(timeout: float) -> int:
    """Return the milliseconds for which a transaction may sit idle in a function of the user's with this timeout."""
    return max(1, int((timeout + _IDLE_GRACE) * 1000))


def reclaim(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any]) -> None:
    """Undo what a handler may have set on a connection that it was given: rows as dicts, another kind of cursor."""
    conn.row_factory = tuple_row
    if isinstance(conn, psycopg.AsyncConnection):
        conn.cursor_factory = psycopg.AsyncCursor
    else:
        conn.cursor_factory = psycopg.Cursor


class Link:
    """A connection for one loop of a worker. `execute` tries once, `repeat` until the database answers.

    `pooled`: a pooler hands sessions to others after each transaction, and what was prepared in them with it.
    """

    def __init__(
        self,
        dsn: str,
        role: str,
        *,
        pooled: bool = False,
        settings: dict[str, str] | None = None,
        on_connect: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]] | None = None,
    ) -> None:
        self._dsn = engine_conninfo(dsn, role)
        self._role = role
        self._pooled = pooled
        self._settings = settings or {}
        self._on_connect = on_connect
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._delays = Delays(_FIRST_WAIT, _LONGEST_WAIT)
        self._connecting = asyncio.Lock()  # two tasks that find none would make two, and nobody would close the first
        self.connections = 0

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.closed

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        """Return the open connection, making it if there is none."""
        async with self._connecting:
            if self._conn is None or self._conn.closed:
                conn = await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, prepare_threshold=threshold(self._pooled)
                )
                try:
                    for name, value in self._settings.items():
                        await conn.execute("SELECT set_config(%s, %s, false)", (name, value))
                    if self._on_connect is not None:
                        await self._on_connect(conn)
                except BaseException:
                    await conn.close()
                    raise
                self._conn = conn
                self.connections += 1
            return self._conn

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows. A connection that broke on the way is dropped."""
        try:
            conn = await self.connection()
            cursor = await conn.execute(statement, params, prepare=True)
            rows = await cursor.fetchall() if cursor.description else []
        except asyncio.CancelledError:
            await self.close()  # the statement may still be running; its answer must not meet the next question
            raise
        except Exception as error:
            if temporary(error) and (self._conn is None or self._conn.closed or self._conn.broken):
                await self.close()
            raise
        if self._delays.grown:
            log.info("%s: the database answers again", self._role)
            self._delays.reset()
        return rows

    async def repeat(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement until the database has answered it. For statements that may run twice."""
        while True:
            try:
                return await self.execute(statement, params)
            except Exception as error:
                if not temporary(error):
                    raise
                await self.pause(error)

    async def pause(self, error: BaseException) -> None:
        """Logs what is wrong and waits a little longer than the last time."""
        log.warning("%s: %s; trying again", self._role, first_line(error))
        await asyncio.sleep(self._delays.next())

    async def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()


def first_line(error: BaseException) -> str:
    """Return a database error in one line; libpq names host and user in it, and never a password."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
