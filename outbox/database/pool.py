"""Keeps open connections for the transactions of handlers.

It has as many as there were transactions at once, which the slots limit. It never waits: if the database is away, the
caller gets the error at once and puts the job back. psycopg_pool would wait longer and longer before it reconnects.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from .connection_group import ConnectionGroup
from .given import Dsn
from .session import READING, connect, connect_async

C = TypeVar("C", psycopg.Connection[Any], psycopg.AsyncConnection[Any])

IDLE_FOR = 600.0
"""Seconds after which a connection that was not needed is closed."""


class Pool:
    """Lends each connection to one task or thread, with its session set up for handlers. Any thread may call it."""

    def __init__(self, dsn: Dsn, role: str, group: ConnectionGroup, *, pooled: bool = False) -> None:
        self._dsn, self._role, self._group, self._pooled = dsn, role, group, pooled
        self._sync: _Kept[psycopg.Connection[Any]] = _Kept()
        self._async: _Kept[psycopg.AsyncConnection[Any]] = _Kept()

    @contextmanager
    def sync_connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Lends a sync connection for a block."""
        conn = self._sync.take(self._group) or connect(
            self._dsn, self._role, settings=READING, pooled=self._pooled, group=self._group
        )
        try:
            yield conn
        finally:
            for each in self._sync.give(conn):
                each.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lends an async connection for a block."""
        conn = self._async.take(self._group) or await connect_async(
            self._dsn, self._role, settings=READING, pooled=self._pooled, group=self._group
        )
        try:
            yield conn
        finally:
            for each in self._async.give(conn):
                await each.close()

    async def close(self) -> None:
        """Closes the connections that are not lent, and from now on each one that is returned."""
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

    def take(self, group: ConnectionGroup) -> C | None:
        """Returns the connection that was returned last, if any is usable."""
        with self._lock:
            while self._conns:
                conn, _ = self._conns.pop()
                if group.holds(conn):
                    return conn
                self._ended.append(conn)
        return None

    def give(self, conn: C) -> list[C]:
        """Keeps a connection that can be used again; returns those to close."""
        now = time.monotonic()
        with self._lock:
            usable = not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE
            if self._open and usable:
                self._conns.append((conn, now))
            else:
                self._ended.append(conn)
            return self._end(lambda since: now - since > IDLE_FOR)

    def close(self) -> list[C]:
        """Returns all connections, which are to be closed. From now on, `give` returns each one that it gets."""
        with self._lock:
            self._open = False
            return self._end(lambda _: True)

    def _end(self, old: Callable[[float], bool]) -> list[C]:
        ended = self._ended + [conn for conn, since in self._conns if old(since)]
        self._conns = [(conn, since) for conn, since in self._conns if not old(since)]
        self._ended = []
        return ended
