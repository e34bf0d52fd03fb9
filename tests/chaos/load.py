"""The light load beside failovers: clients that note what was acknowledged, and the engine's processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from apps.failover import Data, orders
from kit.servers import DEADLINE
from outbox.database.connection_group import ConnectionGroup

TESTS = Path(__file__).parent.parent
PATIENCE = 2.0
"""Seconds in which a server must answer a client, which then asks again by the name."""

PAUSE = 0.2
"""Seconds between two submits of a client, and before it asks again."""


class Clients:
    """Submit workflows, each until it is acknowledged, and keep a file of what was: on disk before the next one begins."""

    def __init__(self, dsn: str, file: Path, count: int) -> None:
        self.dsn, self.file = dsn, file
        self.acknowledged: dict[str, float] = {}  # when, by entity
        self.again = 0  # acknowledged by the answer to a duplicate
        self._until: float | None = None
        self._group = ConnectionGroup()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(count)), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Returns when what was begun is acknowledged, or is not within a minute."""
        self._until = time.monotonic() + 60
        self._thread.join()

    async def _run(self, count: int) -> None:
        with self.file.open("a") as file:
            await asyncio.gather(*(self._submit(number, file) for number in range(count)))

    async def _submit(self, number: int, file: Any) -> None:
        conn: psycopg.AsyncConnection[Any] | None = None
        turn = 0
        while self._until is None:
            entity, acknowledged = f"c{number}-{turn}", False
            while not acknowledged and (self._until is None or time.monotonic() < self._until):
                try:
                    if conn is None:
                        connecting = psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
                        conn = await asyncio.wait_for(connecting, PATIENCE)
                    with self._group.within(PATIENCE, only=conn):
                        async with conn.transaction():
                            submitted = await orders.submit(conn, entity, Data())
                except (psycopg.Error, OSError):
                    conn = await _closed(conn)
                else:
                    acknowledged = True
                    self.again += not submitted.created
                    file.write(f"{entity}\n")
                    file.flush()
                    os.fsync(file.fileno())
                    self.acknowledged[entity] = time.time()
                await asyncio.sleep(PAUSE)
            turn += 1
        await _closed(conn)


async def _closed(conn: psycopg.AsyncConnection[Any] | None) -> None:
    if conn is not None:
        conn.pgconn.finish()  # it asks nothing of a server that may hang


class Engine:
    """The processes of the engine. One that ends by itself is started again, and counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: list[str] = []
        self._of: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._watching = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self, name: str, *arguments: str, **env: str) -> None:
        self._of[name] = arguments, env
        self._begin(name)

    def watch(self) -> None:
        self._thread.start()

    def processes(self, kind: str) -> dict[str, int]:
        """Returns the processes of a kind, by name."""
        return {name: process.pid for name, process in self._running.items() if name.startswith(kind)}

    def end(self) -> None:
        if self._thread.ident is not None:
            self._watching.set()
            self._thread.join()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process in self._running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(DEADLINE)

    def _begin(self, name: str) -> None:
        arguments, env = self._of[name]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", *arguments],
                env={**os.environ, "PYTHONPATH": str(TESTS), **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _watch(self) -> None:
        while not self._watching.wait(0.1):
            for name, process in list(self._running.items()):
                if (code := process.poll()) is not None:
                    self.ended.append(f"{name} ended with {code}")
                    self._begin(name)
