"""A worker's life sign and its ear: one connection that listens, beats, and holds the lock that says "alive".

Polling is the truth and NOTIFY a hint: whatever arrives on the channel causes a poll and no more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from ..database import statements
from ..database.link import Link, temporary
from ..texts import printable

SQL = statements.load("lease")
log = logging.getLogger("outbox.worker")


class Keeper:
    """Keeps one row of outbox.workers alive. `id` changes when the lease was lost: `on_lost` is called first.

    `lease` in seconds. `beaten` is when, by this process's monotonic clock, the last beat that the database
    accepted was sent: what the process may still believe of its lease counts from there.
    """

    def __init__(
        self,
        dsn: str,
        stages: list[str],
        *,
        lease: float,
        listen: bool,
        on_wake: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.id = 0
        self.beaten = time.monotonic()
        self.registered = asyncio.Event()
        self._lease = lease
        self._listen = listen
        self._stages = stages
        self._on_wake = on_wake
        self._on_lost = on_lost
        self._former = 0
        self._watched = False
        self._greeted: psycopg.AsyncConnection[Any] | None = None
        self._link = Link(dsn, "listen")

    async def run(self) -> None:
        """Register, then beat and listen for ever, through any loss of the connection."""
        while True:
            try:
                if not self.id:
                    await self._register()
                conn = await self._link.connection()
                if conn is not self._greeted:
                    await self._greet(conn)
                await self._beat()
                await self._hear(conn, time.monotonic() + self._lease / 6)
            except Exception as error:
                if not temporary(error):
                    log.error("worker %s: can't keep its lease: %s", self.id, printable(error))
                if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                    await self._link.close()
                await self._link.pause(error)

    def forget(self) -> None:
        """Give up the id, which was lost or can no longer be trusted; `run` takes a new one."""
        self._former, self.id = self.id, 0
        self.registered.clear()

    async def set_idle(self, link: Link, idle: bool) -> bool:
        """Say on a claimer's connection whether this worker rests; False if its row is gone."""
        return bool(await link.execute(SQL["worker_set_idle"], {"worker": self.id, "idle": idle}))

    async def leave(self) -> None:
        """Take the row away: whatever is still held in its name is free at once."""
        worker, self.id = self.id, 0
        self.registered.clear()
        try:
            if worker:
                await self._link.execute(SQL["worker_leave"], {"worker": worker})
        finally:
            await self._link.close()

    async def _register(self) -> None:
        if self._former:
            await self._link.execute(SQL["worker_leave"], {"worker": self._former})
        sent = time.monotonic()
        name = f"{socket.gethostname()}:{os.getpid()}"
        rows = await self._link.execute(
            SQL["worker_register"], {"name": name, "stages": self._stages, "lease": self._lease}
        )
        self.id, self.beaten, self._greeted = rows[0][0], sent, None
        self.registered.set()
        log.info("worker %s serves %s", self.id, ", ".join(self._stages))

    async def _greet(self, conn: psycopg.AsyncConnection[Any]) -> None:
        rows = await self._link.execute(SQL["worker_watch"], {"worker": self.id})
        self._watched = bool(rows[0][0])
        if self._listen:
            await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(f"outbox_{self.id}")))
        self._greeted = conn
        self._on_wake()  # what was said while nobody listened

    async def _beat(self) -> None:
        sent = time.monotonic()
        rows = await self._link.execute(SQL["worker_beat"], {"worker": self.id, "watched": self._watched})
        if rows:
            self.beaten = sent
        else:
            self._on_lost("the lease was taken away")
            self.forget()
            await self._register()
            await self._greet(await self._link.connection())

    async def _hear(self, conn: psycopg.AsyncConnection[Any], until: float) -> None:
        while self.id and (rest := until - time.monotonic()) > 0:
            if not self._listen:
                await asyncio.sleep(min(rest, 0.5))
                continue
            # A short timeout, so that a lease that was given up meanwhile is taken anew soon.
            async for _ in conn.notifies(timeout=min(rest, 0.5), stop_after=1):
                self._on_wake()
