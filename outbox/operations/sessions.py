"""Asks Postgres for the page and for MCP: a few at once, each in a transaction of its own, and none for long.

The lookups that these share with the command line are synchronous, so they run in threads. A statement that takes too
long is ended by Postgres; if Postgres itself hangs, the socket is shut.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

from ..database import statements
from ..database.dsn import engine_conninfo
from ..database.session import connect
from ..database.sockets import shut
from ..errors import OutboxError
from ..texts import printable, without_passwords

SQL = statements.load("sessions")

log = logging.getLogger("outbox.sessions")
T = TypeVar("T")
Conn = psycopg.Connection[Any]

PATIENCE = 3.0
"""Seconds that a statement may run. Readers of a page give up by then."""

GRACE = 2.0
"""Seconds beyond that after which Postgres itself is given up."""

MOST = 4
"""Sessions with one DSN in a process, at most."""

_CONNECT_TIMEOUT = "3"
"""Seconds that each host has to answer, unless the DSN says otherwise."""


class Late(Exception):
    """Postgres has not answered in time."""


@dataclass(frozen=True, slots=True)
class Panel(Generic[T]):
    """A part of a page: what was found, or why it was not."""

    value: T | None = None
    trouble: str | None = None


class Sessions:
    """A few sessions with one DSN. They are opened when they are needed, and used again."""

    def __init__(self, dsn: str, role: str, *, writes: bool = False, patience: float = PATIENCE) -> None:
        engine_conninfo(dsn, role)  # a DSN that can't be read is refused now
        given = conninfo_to_dict(dsn)
        self._dsn = dsn if "connect_timeout" in given else make_conninfo(dsn, connect_timeout=_CONNECT_TIMEOUT)
        self._role, self._writes, self.patience = role, writes, patience
        self._threads = ThreadPoolExecutor(MOST, thread_name_prefix=f"outbox-{role}")
        self._idle: deque[Conn] = deque()
        self.close = weakref.finalize(self, _close, self._idle, self._threads)
        """Closes all sessions. Without it, they are closed with the process."""

    async def run(self, work: Callable[[Conn], T]) -> T:
        """Runs `work` with a connection, in a transaction, which can't change anything unless the sessions may write.

        Raises Late if there is no answer in time, and whatever `work` raises.
        """
        task = _Task(work)
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._work, task)
        try:
            return await asyncio.wait_for(future, self.patience + GRACE)
        except TimeoutError:
            task.cut()
            raise Late from None

    async def panel(self, look: Callable[[Conn], T]) -> Panel[T]:
        """Returns what a lookup finds, or says why it failed."""
        return await self.told(self.run(look))

    async def told(self, ask: Awaitable[T]) -> Panel[T]:
        """Returns the answer, or says why there is none."""
        try:
            return Panel(await ask)
        except Exception as error:
            return Panel(trouble=self.explain(error))

    def explain(self, error: BaseException) -> str:
        """Returns in a sentence why something failed, without any secret."""
        if isinstance(error, Late | psycopg.errors.QueryCanceled):
            return f"This took longer than {self.patience:g} s, and was given up."
        if isinstance(error, psycopg.OperationalError) and not error.sqlstate:
            return f"Postgres can't be reached: {_line(error)}"
        if isinstance(error, psycopg.Error) and not isinstance(error, OutboxError):
            if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
                return "The schema outbox is missing or older than this code. Run: outbox migrate"
            return f"Postgres refused this: {_line(error.diag.message_primary or error)}"
        if isinstance(error, OutboxError):
            return _line(error)
        log.error("a lookup failed", exc_info=error)
        return "This failed. The log says why."

    def _work(self, task: _Task[T]) -> T:
        conn = self._take(task)
        try:
            with conn.transaction():
                conn.execute(SQL["patience_set"], {"ms": int(self.patience * 1000)})
                return task.work(conn)
        finally:
            self._give_back(conn, task)

    def _take(self, task: _Task[T]) -> Conn:
        """Returns an open session: an idle one that still answers, or a new one."""
        with suppress(IndexError):
            while True:
                conn = self._idle.pop()
                try:
                    task.begin(conn)
                    conn.execute(b"")
                except psycopg.Error:  # such as of a server that was restarted
                    conn.close()
                except BaseException:
                    conn.close()
                    raise
                else:
                    return conn
        conn = connect(self._dsn, self._role, pooled=True, read_only=not self._writes)
        try:
            conn.read_only = not self._writes
            task.begin(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _give_back(self, conn: Conn, task: _Task[T]) -> None:
        if (
            task.end()
            and not conn.closed
            and conn.info.transaction_status == TransactionStatus.IDLE
            and self.close.alive
        ):
            self._idle.append(conn)
        else:
            conn.close()


class _Task(Generic[T]):
    """Work in a thread, which may be cut off from Postgres from outside."""

    def __init__(self, work: Callable[[Conn], T]) -> None:
        self.work = work
        self._conn: Conn | None = None
        self._is_cut = False
        self._lock = threading.Lock()

    def begin(self, conn: Conn) -> None:
        with self._lock:
            if self._is_cut:
                raise Late
            self._conn = conn

    def end(self) -> bool:
        """Lets go of the connection. Returns whether it was not cut."""
        with self._lock:
            self._conn = None
            return not self._is_cut

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._conn is not None:
                with suppress(psycopg.Error, OSError):
                    shut(self._conn)


def _close(idle: deque[Conn], threads: ThreadPoolExecutor) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    while idle:
        idle.pop().close()


def _line(error: object) -> str:
    return printable(without_passwords(" ".join(str(error).split())))
