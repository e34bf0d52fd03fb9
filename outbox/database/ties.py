"""Lets go of a server: shuts the sockets of all sessions that a process has there, and comes back only if it may.

A server that hangs, or whose commits wait for a standby that is lost, answers no statement, and no cancellation either.
A statement is slow for many reasons; that the server hangs is decided by one that can't be slow, such as a heartbeat.

A session that is let go of may stay on the server, as one does that waits for a standby. Those of ours are counted: if
too many are left, a process asks every now and then, and opens nothing else there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import psycopg

from . import primary, statements
from .dsn import host_last
from .statements import array
from .steps import Statement

SQL = statements.load("ties")
log = logging.getLogger("outbox.database")

PATIENCE = 10.0
"""Seconds that a server may take to answer what can't be slow. Its disk may stand still for some of them."""

MOST_LEFT = 8
"""How many sessions may be left on a server when a process comes back to it: about as many as one has at once."""

ASK_EVERY = 1.0
"""Seconds between two questions to a server whether they are gone."""

_SERVERS = 8
"""How many servers are remembered on which sessions were left, and hosts that were let go of."""

READ_ONLY = (
    "the server is read-only: it is a standby, or default_transaction_read_only is on, for the server, this database "
    "or this role"
)

Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Ties:
    """The sessions that one worker, relay or consumer has on its server. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tied: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()  # with the server that it leads to
        self._left: dict[str, set[int]] = {}  # pids by server
        self._hosts: list[tuple[str, str]] = []  # the last that were let go of, each with its port
        self._full: str | None = None  # why nothing more is opened
        self._asked = 0.0

    def cut(self, why: str, *, only: Connection | None = None) -> None:
        """Shuts the sockets of all sessions: what waits for an answer there fails at once, as if the line was cut."""
        with self._lock:
            chosen = list(self._tied) if only is None else [only]
            places = [place for conn in chosen if (place := self._shut(conn))]
            for place in set(places):
                self._hosts = [*(each for each in self._hosts if each != place), place][-_SERVERS:]
            for conn in chosen:
                self._tied.pop(conn, None)
        if places:
            log.warning("%s: let go of %s sessions", why, len(places))

    def without(self, dsn: str) -> str:
        """Returns the DSN with the hosts that were let go of at its end: what hangs keeps each connection waiting."""
        for host, port in self._hosts:
            dsn = host_last(dsn, host, port)
        return dsn

    def holds(self, conn: Connection) -> bool:
        """Returns whether a session is open and was not cut. One that was cut tells so only when it is used."""
        return not conn.closed and conn in self._tied

    @contextmanager
    def within(self, seconds: float, *, only: Connection | None = None) -> Iterator[None]:
        """Is a block in the event loop: whenever it has taken so many seconds, all sessions are cut, or `only` one."""
        loop = asyncio.get_running_loop()

        def cut() -> None:
            timers[0] = loop.call_later(seconds, cut)
            self.cut(f"the database has not answered for {seconds:.3g} s", only=only)

        timers = [loop.call_later(seconds, cut)]
        try:
            yield
        finally:
            timers[0].cancel()

    def tie(
        self, conn: Connection, dsn: str, setting: Statement, *, read_only: bool
    ) -> Generator[Statement, Any, None]:
        """Sets up a new session, and has it cut with the others. Its errors mean that this server won't do.

        They are ReadOnlySqlTransaction, unless `read_only` sessions will do, and OperationalError where too many
        sessions were left, or on a host of the DSN that is not the primary (see primary.py).
        """
        with self._lock:
            self._tied[conn] = ""
        yield from primary.arriving(dsn, conn)
        ((server, is_read_only, _),) = yield setting
        if is_read_only and not read_only:
            raise psycopg.errors.ReadOnlySqlTransaction(READ_ONLY)
        count, waits_for = 0, None
        with self._lock:
            pids = list(self._left.get(server, ()))
        if pids:
            ((count, waits_for),) = yield SQL["sessions_left"], {"pids": array(pids)}
        self._note_left(server, count, waits_for)
        with self._lock:
            self._tied[conn] = server
            former = [each for each, where in list(self._tied.items()) if where not in ("", server)]
            shut = [each for each in former if self._shut(each)]
            for each in former:
                self._tied.pop(each, None)
        if shut:
            log.warning("another server answers now: let go of %s sessions", len(shut))

    def require_room(self) -> None:
        """Raises OperationalError if a server was found to have too many of our sessions a moment ago."""
        with self._lock:
            if self._full is None:
                return
            if time.monotonic() - self._asked >= ASK_EVERY:
                self._asked = time.monotonic()  # this one asks again
                return
        raise psycopg.OperationalError(self._full)

    def _note_left(self, server: str, count: int, waits_for: str | None) -> None:
        with self._lock:
            self._full = None
            if not count:
                self._left.pop(server, None)
            elif count >= MOST_LEFT:
                self._full = (
                    f"{count} sessions that were let go of are still on the server ({waits_for}): "
                    "no more are opened until they have ended"
                )
                raise psycopg.OperationalError(self._full)

    def _shut(self, conn: Connection) -> tuple[str, str] | None:
        """Shuts a session's socket; returns its host and port, or None if it was closed."""
        with suppress(psycopg.Error, OSError):  # it is closed already
            descriptor = os.dup(conn.pgconn.socket)
            with socket.socket(fileno=descriptor) as line:
                line.shutdown(socket.SHUT_RDWR)
            if server := self._tied.get(conn):
                self._left.setdefault(server, set()).add(conn.pgconn.backend_pid)
                while len(self._left) > _SERVERS:
                    del self._left[next(iter(self._left))]
            return conn.info.host, str(conn.info.port)
        return None
