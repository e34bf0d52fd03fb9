"""Closes all connections that a process has to a server, when that server hangs or is not the primary any more.

A server that hangs, or whose commits wait for a lost standby, answers no statement and no cancellation, so the sockets
are shut. A statement may be slow for many reasons. Whether the server hangs is decided by one that can't be slow, such
as a heartbeat. While that one is not answered, the hosts of the DSN are asked for another primary: if there is one, the
server is left at once. If there is none, it gets some more time.

A session may remain on the server after its socket was shut, for example while it waits for a standby. The group counts
its own. When too many remain, it opens no further connection to that server, and checks again once a second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import psycopg

from . import primary, statements
from .dsn import host_last
from .given import Dsn
from .sockets import shut
from .statements import array
from .steps import Statement

SQL = statements.load("connection_group")
log = logging.getLogger("outbox.database")

PATIENCE = 10.0
"""Seconds that a server has to answer a statement that can't be slow. A stalled disk may recover within this time."""

DOUBT = 1.0
"""Seconds without such an answer, after which the hosts are asked, and between two such questions."""

CHECK_EVERY = 10.0
"""Seconds between two looks at all hosts while all is answered: a former primary that came back answers, too. A look
takes a few seconds at most, so a wrong server is left within 15."""

MOST_LEFT = 8
"""How many sessions may remain on a server to which a process reconnects: about as many as it uses at once."""

ASK_EVERY = 1.0
"""Seconds between two checks whether they are gone."""

_SERVERS = 8
"""How many servers with remaining sessions are remembered, and how many hosts that were left."""

READ_ONLY = (
    "the server is read-only: it is a standby, or default_transaction_read_only is on, for the server, this database "
    "or this role"
)

Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class ConnectionGroup:
    """The connections of one worker, relay or consumer. Any thread may call it.

    `leave` is called with the reason when another host has become the primary: `cut`, or what has more to give up.
    """

    def __init__(self) -> None:
        self.leave: Callable[[str], object] = self.cut
        self._dsns: dict[Dsn, None] = {}  # in the order in which they were first used
        self._timeline = 0  # of the server that the latest session leads to; 0: not known
        self._looking: asyncio.Task[None] | None = None
        self._lock = threading.RLock()
        self._members: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()  # with the server that it leads to
        self._left: dict[str, set[int]] = {}  # pids by server
        self._hosts: list[tuple[str, str]] = []  # the last that were let go of, each with its port
        self._full: str | None = None  # why nothing more is opened
        self._asked = 0.0

    def cut(self, why: str, *, only: Connection | None = None) -> None:
        """Shuts the sockets of all connections, or of `only` one. Whatever waits for an answer fails at once."""
        with self._lock:
            chosen = list(self._members) if only is None else [only]
            places = [place for conn in chosen if (place := self._shut(conn))]
            for place in set(places):
                self._hosts = [*(each for each in self._hosts if each != place), place][-_SERVERS:]
            for conn in chosen:
                self._members.pop(conn, None)
        if places:
            log.warning("%s: let go of %s sessions", why, len(places))

    def without(self, dsn: str) -> str:
        """Returns the DSN with the hosts that were left at its end, because trying one may take seconds."""
        for host, port in self._hosts:
            dsn = host_last(dsn, host, port)
        return dsn

    def holds(self, conn: Connection) -> bool:
        """Returns whether a connection is open and was not cut, which psycopg notices only when it is used."""
        return not conn.closed and conn in self._members

    @contextmanager
    def within(self, seconds: float, *, only: Connection | None = None) -> Iterator[None]:
        """Cuts all connections, or `only` one, each time that the block has taken so many seconds. For coroutines.

        Before that, leaves the server as soon as another host is found to be the primary.
        """
        loop = asyncio.get_running_loop()

        def cut() -> None:
            timers[0] = loop.call_later(seconds, cut)
            self.cut(f"the database has not answered for {seconds:.3g} s", only=only)

        def doubt() -> None:
            timers[1] = loop.call_later(DOUBT, doubt)
            if self._looking is None or self._looking.done():
                self._looking = loop.create_task(self._look())

        timers = [loop.call_later(seconds, cut), loop.call_later(DOUBT, doubt)]
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    async def watch(self) -> None:
        """Looks for ever whether another host has become the primary, and leaves the server if so."""
        while True:
            await asyncio.sleep(CHECK_EVERY)
            await self._look()

    async def _look(self) -> None:
        for dsn in list(self._dsns):
            try:
                async with aclosing(primary.asked(dsn)) as news:
                    async for known in news:
                        if known.is_outdated(self._timeline):
                            self._timeline = 0  # until a session arrives, which is somewhere else
                            self.leave("another host has become the primary")
                            return
            except psycopg.OperationalError as error:  # of a function that returns the DSN
                log.warning("the hosts of the database can't be asked: %s", error)
            except Exception:
                log.exception("the hosts of the database can't be asked")

    def add(
        self, conn: Connection, dsn: Dsn, place: str, setting: Statement, *, read_only: bool
    ) -> Generator[Statement, Any, None]:
        """Sets up a new session, and adds its connection to those that are cut together. `place` is its DSN as text.

        Raises ReadOnlySqlTransaction if the server is read-only, unless `read_only` allows that. Raises
        OperationalError if too many sessions remain on the server, or if the host is not the primary (primary.py).
        """
        with self._lock:
            self._members[conn] = ""
            self._dsns[dsn] = None
        timeline = yield from primary.arriving(place, conn)
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
            self._members[conn] = server
            self._timeline = timeline
            former = [each for each, where in list(self._members.items()) if where not in ("", server)]
            shut = [each for each in former if self._shut(each)]
            for each in former:
                self._members.pop(each, None)
        if shut:
            log.warning("another server answers now: let go of %s sessions", len(shut))

    def require_room(self) -> None:
        """Raises OperationalError if the last check found too many remaining sessions on the server."""
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
            shut(conn)
            if server := self._members.get(conn):
                self._left.setdefault(server, set()).add(conn.pgconn.backend_pid)
                while len(self._left) > _SERVERS:
                    del self._left[next(iter(self._left))]
            return conn.info.host, str(conn.info.port)
        return None
