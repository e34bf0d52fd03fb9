"""Open connections that wait for the next transaction of a handler, so that not each of them must connect.

There are as many as there were transactions at once: slots bound them. A database that is away is told at once, for the
job goes back and comes again; there is no waiting in here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from .session import READING, connect, connect_async
from .ties import Ties

C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])

IDLE_FOR = 600.0
"""Seconds after which a connection that was not needed is closed."""


class Spares:
    """Lends connections to one task or thread each, with sessions that handlers may be given. Any thread may use it."""

    def __init__(self, dsn: str, role: str, ties: Ties, *, pooled: bool = False) -> None:
        self._dsn, self._role, self._ties, self._pooled = dsn, role, ties, pooled
        self._sync: _Kept[psycopg.Connection[Any]] = _Kept()
        self._async: _Kept[psycopg.AsyncConnection[Any]] = _Kept()

    @contextmanager
    def sync_connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Is a block with a sync connection."""
        conn = self._sync.take(self._ties) or connect(
            self._dsn, self._role, settings=READING, pooled=self._pooled, ties=self._ties
        )
        try:
            yield conn
        finally:
            for each in self._sync.give(conn):
                each.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Is a block with an async connection."""
        conn = self._async.take(self._ties) or await connect_async(
            self._dsn, self._role, settings=READING, pooled=self._pooled, ties=self._ties
        )
        try:
            yield conn
        finally:
            for each in self._async.give(conn):
                await each.close()

    async def close(self) -> None:
        """Closes those that are not lent, and from now on each that comes back."""
        for conn in self._sync.close():
            conn.close()
        for each in self._async.close():
            await each.close()


class _Kept(Generic[C]):
    def __init__(self) -> None:
        self._conns: list[tuple[C, float]] = []  # each with the time of its return
        self._ended: list[C] = []
        self._open = True
        self._lock = threading.Lock()

    def take(self, ties: Ties) -> C | None:
        """Returns the one that came last, if any can be used."""
        with self._lock:
            while self._conns:
                conn, _ = self._conns.pop()
                if ties.holds(conn):
                    return conn
                self._ended.append(conn)
        return None

    def give(self, conn: C) -> list[C]:
        """Keeps one that can be used again; returns those that are to be closed."""
        now = time.monotonic()
        with self._lock:
            usable = not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE
            if self._open and usable:
                self._conns.append((conn, now))
            else:
                self._ended.append(conn)
            return self._end(lambda since: now - since > IDLE_FOR)

    def close(self) -> list[C]:
        """Returns all that are here, which are to be closed; from now on, `give` returns each that comes back."""
        with self._lock:
            self._open = False
            return self._end(lambda _: True)

    def _end(self, old: Callable[[float], bool]) -> list[C]:
        ended = self._ended + [conn for conn, since in self._conns if old(since)]
        self._conns = [(conn, since) for conn, since in self._conns if not old(since)]
        self._ended = []
        return ended
