"""A connection of the engine that is made again, with back-off, after restarts, cuts and fail-overs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import psycopg

from ..process.files import no_more_files
from ..process.service import Delays
from ..texts import printable
from .connection_group import READ_ONLY, ConnectionGroup
from .given import Dsn, require_readable
from .session import WORKING, connect_async

log = logging.getLogger("outbox.database")

# The engine's own sessions prepare their plans once. These settings choose, also while the tables are still empty, the
# plans that are right for full ones.
PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

_IDLE_GRACE = 5.0
"""Seconds beyond a function's timeout after which Postgres ends a session that is idle in a transaction.

A process that has frozen while it holds row locks must not block the one that takes over.
"""

# Lost connections, rolled back transactions, exhausted resources, shutdowns and system errors.
_TEMPORARY_CLASSES = {"08", "40", "53", "57", "58"}
# A standby that isn't the primary yet, a lock that wasn't had in time, and a state that passes.
_TEMPORARY_STATES = {"25006", "55P03", "55000"}

_REFUSED = "session is read-only"
"""What libpq says of a server that can't be written to, where target_session_attrs asks for one."""

_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
"""Seconds before a statement is tried again, doubled each time: a restart is over soon, a fail-over takes longer."""


def temporary(error: BaseException) -> bool:
    """Tells whether the same statement may succeed later: a lost connection, a restart, a deadlock, a full disk."""
    if isinstance(error, OSError | psycopg.InterfaceError):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate[:2] in _TEMPORARY_CLASSES or error.sqlstate in _TEMPORARY_STATES


def idle_ms(timeout: float) -> int:
    """Returns for how many ms a transaction may be idle while a user's function with this timeout (s) runs."""
    return max(1, int((timeout + _IDLE_GRACE) * 1000))


class Link:
    """A connection for one loop of a worker. `execute` tries once; `repeat` tries until the database answers.

    Each new session is as the engine needs it, or as `session` says, with `settings` on top. `pooled` says that a
    pooler gives the session to others after each transaction, so that nothing may be prepared in it. The connection
    belongs to `group`: it is cut with the others, and a server that is read-only cuts all of them.
    """

    def __init__(
        self,
        dsn: Dsn,
        role: str,
        *,
        pooled: bool = False,
        session: Mapping[str, str] = WORKING,
        settings: dict[str, str] | None = None,
        group: ConnectionGroup | None = None,
    ) -> None:
        require_readable(dsn, role)
        self._dsn, self._role, self._pooled = dsn, role, pooled
        self._session = {**session, **(settings or {})}
        self._group = group or ConnectionGroup()
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._delays = Delays(_FIRST_WAIT, _LONGEST_WAIT)
        self._connecting = asyncio.Lock()  # else two tasks could each make one, and one would stay open
        self.connections = 0

    @property
    def pid(self) -> int | None:
        """The server's process of the open connection."""
        return self._conn.info.backend_pid if self._conn is not None and not self._conn.closed else None

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.closed

    async def connection(self) -> psycopg.AsyncConnection[Any]:
        """Returns the open connection, made if there is none."""
        async with self._connecting:
            if self._conn is None or not self._group.holds(self._conn):
                await self.close()
                self._conn = await connect_async(
                    self._dsn, self._role, settings=self._session, pooled=self._pooled, group=self._group
                )
                self.connections += 1
            return self._conn

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Runs a statement once and returns its rows. Drops a connection that breaks meanwhile."""
        try:
            conn = await self.connection()
            cursor = await conn.execute(statement, params, prepare=True)
            rows = await cursor.fetchall() if cursor.description else []
        except asyncio.CancelledError:
            await self.close()  # the statement may still be running; its answer must not meet the next question
            raise
        except psycopg.errors.ReadOnlySqlTransaction:
            # It was demoted, or is to be kept from being written to. What only reads there would stay for ever.
            self._group.cut("the server is read-only now")
            await self.close()
            raise
        except Exception as error:
            if temporary(error) and (self._conn is None or self._conn.closed or self._conn.broken):
                await self.close()
            raise
        if self._delays.grown:
            log.info("%s: the database answers again", self._role)
            self._delays.reset()
        return rows

    async def repeat(
        self, statement: bytes, params: dict[str, Any], *, answers: frozenset[str] = frozenset()
    ) -> list[tuple[Any, ...]]:
        """Runs a statement until the database has answered it, and returns its rows. It may run more than once.

        `answers` are SQLSTATEs that count as an answer, and are raised, though they may pass.
        """
        while True:
            try:
                return await self.execute(statement, params)
            except Exception as error:
                if not temporary(error) or getattr(error, "sqlstate", None) in answers:
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
    """Returns the first line of a database error, and that it is for want of files, which libpq doesn't tell.

    libpq may name the host and the user in it, but not a password. Of a connection that no host has taken, it is what
    each of them has said.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    told = "; ".join([line for line in lines if line.startswith("- host: ")] or lines[:1])
    told = printable(f"{told} ({READ_ONLY})" if _REFUSED in told else told)
    unsaid = no_more_files() if getattr(error, "sqlstate", None) is None else None
    return f"{told}; {unsaid}" if unsaid else told
