"""A worker that notes how long each of its claims takes, and how many steps each commit makes.

`python -m bench.claims DSN FILE` works until SIGTERM, and writes the notes (notes.py) into the file.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

from outbox import Worker, logs, statements
from outbox.link import Link
from outbox.worker import PLANNING

from .app import posts
from .notes import Notes

CLAIM = statements.load("claim")["jobs_claim"]
FINISH = statements.load("commit")["jobs_finish_if_held"]


class NotingLink(Link):
    """A connection of the worker that notes what is asked on it."""

    def __init__(self, dsn: str, role: str, notes: Notes) -> None:
        super().__init__(dsn, role, settings=PLANNING)
        self._notes = notes

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        asked = time.monotonic()
        rows = await super().execute(statement, params)
        if statement is CLAIM:
            self._notes.claims.append((time.time(), (time.monotonic() - asked) * 1000, len(rows)))
        elif statement is FINISH:
            self._notes.steps.append((time.time(), len(rows)))
        return rows


class NotingWorker(Worker):
    """The worker as it is, but for the notes."""

    def __init__(self, dsn: str) -> None:
        super().__init__(posts, dsn)
        self.notes = Notes()

    def _link(self, step: str) -> Link:
        return NotingLink(self._dsn, step, self.notes)


async def work(dsn: str) -> Notes:
    worker = NotingWorker(dsn)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    return worker.notes


if __name__ == "__main__":
    logs.set_up("text")  # as `outbox worker` does: its lines are a part of what it costs
    asyncio.run(work(sys.argv[1])).write(Path(sys.argv[2]))
