"""A worker that notes when handlers begin and commits are answered: in memory, and in a file when it is stopped.

`python -m bench.timed DSN FILE` writes a JSON object: for each workflow when its first handler began and when COMMIT
of its last step was answered, in seconds of the machine's clock.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from outbox import Run, Worker, logs, statements
from outbox.link import Link
from outbox.worker import PLANNING

from .app import Post, posts

FINISH = statements.load("commit")["jobs_finish_if_held"]


class TimedLink(Link):
    """A connection of the worker, which remembers when a workflow's last commit was answered."""

    def __init__(self, dsn: str, step: str, ended: dict[str, float]) -> None:
        super().__init__(dsn, step, settings=PLANNING)
        self._ended = ended

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        rows = await super().execute(statement, params)
        if statement is FINISH:
            now = time.time()
            for (workflow,) in rows:
                self._ended[workflow] = now  # each step's overwrites the one before
        return rows


class TimedWorker(Worker):
    """The worker as it is, but for the notes."""

    def __init__(self, dsn: str) -> None:
        super().__init__(posts, dsn)
        self.ended: dict[str, float] = {}

    def _link(self, step: str) -> Link:
        return TimedLink(self._dsn, step, self.ended)


def note_starts() -> dict[str, float]:
    """Have the first stage's handler note when it begins; return the notes."""
    started: dict[str, float] = {}
    stage = posts.stages["enrich"]

    async def handler(run: Run[Post]) -> Any:
        started[str(run.workflow_id)] = time.time()
        return await stage.handler(run)

    posts.stages["enrich"] = replace(stage, handler=handler)
    return started


async def work(dsn: str) -> dict[str, float]:
    worker = TimedWorker(dsn)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
    return worker.ended


if __name__ == "__main__":
    logs.set_up("text")  # as `outbox worker` does: its lines are a part of what it costs
    started = note_starts()
    ended = asyncio.run(work(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps({workflow: (started[workflow], ended[workflow]) for workflow in ended}))
