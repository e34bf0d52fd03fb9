"""Keeps a worker's lease on one connection, which sends heartbeats, listens, and holds the lock that proves it alive.

Claims rely on polling; NOTIFY is only a hint. Any notification causes a poll and nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql

from ..database import statements
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import Link, temporary
from ..texts import check_optional, printable
from .inflight import InFlight

SQL = statements.load("lease")
log = logging.getLogger("outbox.worker")

TRUSTED = 0.45
"""Part of the lease for which a process trusts its last beat. With the default lease, a server that hangs is left
within 15 s, after two beats that it did not answer."""

BEATS, BEAT_EVERY = 6, 2.0
"""How many beats are sent within a lease, and the most seconds between two: a server that does not answer one may have
been failed over from."""

MAX_RELEASE = 200
"""Most characters of a release's name: a tag, or the hash of a commit."""

LEAVE_WITHIN = 2.0
"""Seconds in which a process that ends tries to take its row away: else the lease's end does it."""


def release_of(given: str | None) -> str | None:
    """Returns the release that a worker is told to run, or that OUTBOX_RELEASE names."""
    release = os.environ.get("OUTBOX_RELEASE") or None if given is None else given
    check_optional(release, "release", MAX_RELEASE)
    return release


class Lease:
    """Keeps one row of outbox.workers alive, for `seconds` from each heartbeat.

    `id` changes when the lease was lost; what is in flight is dropped before. `beaten` is when, by this process's
    monotonic clock, the last beat that the database accepted was sent: from there on the process trusts its lease for
    `trusted` seconds. `begun` is called whenever the worker has registered and listens.
    """

    def __init__(
        self, dsn: Dsn, inflight: InFlight, *, seconds: float, listen: bool, group: ConnectionGroup | None = None,
        begun: Callable[[], object] = lambda: None, release: str | None = None,
    ) -> None:  # fmt: skip
        self.id = 0
        self.beaten = time.monotonic()
        self.trusted = seconds * TRUSTED
        self.every = min(seconds / BEATS, BEAT_EVERY)
        self.registered = asyncio.Event()
        self._seconds, self._release = seconds, release
        self.listens = listen
        self._stages = [lane.stage.queue for lane in inflight.lanes.values()]
        self._inflight = inflight
        self._former = 0
        self._registering: asyncio.Task[None] | None = None
        self._watched, self._begun = False, begun
        self._greeted: psycopg.AsyncConnection[Any] | None = None
        self._group = group or ConnectionGroup()
        self._group.leave = self.leave_server
        self._link = Link(dsn, "listen", group=self._group)

    @property
    def is_listening(self) -> bool:
        """Whether the worker is registered, and hears what it is told, or polls. From any thread."""
        conn = self._greeted
        return bool(self.id) and conn is not None and not conn.closed

    async def run(self) -> None:
        """Registers, then sends heartbeats and listens until it is cancelled. It reconnects whenever needed."""
        while True:
            try:
                conn = await self._link.connection()
                with self._group.within(self.trusted):
                    if not self.id:
                        await self._register_whole()
                    conn = await self._link.connection()
                    if conn is not self._greeted:
                        await self._greet(conn)
                    await self._beat()
                await self._hear(conn, time.monotonic() + self.every)
            except Exception as error:
                if not temporary(error):
                    log.error("worker %s: can't keep its lease: %s", self.id, printable(error))
                if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                    await self._link.close()
                await self._link.pause(error)

    def is_trusted(self) -> bool:
        """Returns whether a beat was accepted so lately that what was claimed still counts. From any thread.

        A process that has stood still finds this out by its clock, before anything has told it.
        """
        return time.monotonic() - self.beaten <= self.trusted

    async def watch(self) -> None:
        """Gives the lease up by this process's own clock when no beat was accepted for as long as it is trusted.

        Whatever waits for an answer of that server fails then, with all that was begun under the lease.
        """
        while True:
            await asyncio.sleep(min(0.2, self._seconds / 10))
            if self.id and not self.is_trusted():
                self.leave_server(f"no heartbeat was answered for {self.trusted:.3g} s")

    def leave_server(self, why: str) -> None:
        """Gives up the lease and all sessions: what was begun on this server counts no more."""
        if self.id:
            self._lose(why)
        self._group.cut(why)

    def _lose(self, why: str) -> None:
        """Gives up the id, which was lost or can't be trusted any more; `run` registers a new one."""
        self._inflight.lose(why)
        self._former, self.id = self.id, 0
        self.registered.clear()

    async def set_idle(self, link: Link, idle: bool) -> bool:
        """Stores, on a claimer's connection, whether this worker rests; returns False if its row is gone.

        A worker that doesn't listen stores nothing. A NOTIFY to it would reach no one, and sessions that had sent it
        could not PREPARE TRANSACTION.
        """
        if not self.listens:
            return True
        return bool(await link.execute(SQL["worker_set_idle"], {"worker": self.id, "idle": idle}))

    async def leave(self) -> None:
        """Deletes the worker's row, which frees at once what is still held under its id."""
        if self._registering is not None:
            with suppress(Exception):
                await self._registering  # it may be inserting a row right now
        worker, self.id = self.id, 0
        self.registered.clear()
        try:
            if worker:
                with self._group.within(LEAVE_WITHIN):
                    await self._link.execute(SQL["worker_leave"], {"worker": worker})
        finally:
            await self._link.close()

    async def _register_whole(self) -> None:
        """Registers, even if it is cancelled halfway. Otherwise a row would stay without a worker."""
        self._registering = asyncio.create_task(self._register())
        await asyncio.shield(self._registering)

    async def _register(self) -> None:
        if self._former:
            await self._link.execute(SQL["worker_leave"], {"worker": self._former})
        sent = time.monotonic()
        name = f"{socket.gethostname()}:{os.getpid()}"
        told = {"name": name, "stages": self._stages, "lease": self._seconds, "release": self._release}
        while not (rows := await self._link.execute(SQL["worker_register"], told)):
            log.debug("the id is another worker's: a second one is drawn")
        self.id, self.beaten, self._greeted = rows[0][0], sent, None
        self.registered.set()
        of = f" of release {printable(self._release)}" if self._release else ""
        log.info("worker %s%s serves %s", self.id, of, ", ".join(self._stages) or "schedules only")

    async def _greet(self, conn: psycopg.AsyncConnection[Any]) -> None:
        rows = await self._link.execute(SQL["worker_watch"], {"worker": self.id})
        self._watched = bool(rows[0][0])
        if self.listens:
            await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"outbox_{self.id}")))
        self._greeted = conn
        self._inflight.wakeups.wake()  # a notification may have come before this connection listened
        self._begun()

    async def _beat(self) -> None:
        sent = time.monotonic()
        rows = await self._link.execute(SQL["worker_beat"], {"worker": self.id, "watched": self._watched})
        if rows:
            self.beaten = sent
        else:
            self._lose("the lease was taken away")
            await self._register_whole()
            await self._greet(await self._link.connection())

    async def _hear(self, conn: psycopg.AsyncConnection[Any], until: float) -> None:
        while self.id and (rest := until - time.monotonic()) > 0:
            if not self.listens:
                await asyncio.sleep(min(rest, 0.5))
                continue
            # The timeout is short, so that a lease given up in the meantime is soon replaced.
            async for notify in conn.notifies(timeout=min(rest, 0.5), stop_after=1):
                self._inflight.wakeups.notified(notify.payload)
