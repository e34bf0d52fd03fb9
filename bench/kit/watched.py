"""Runs the engine's own worker, and reports the answers to its statements. It adds no SQL."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Any

from outbox import Pipeline, Worker
from outbox.database.link import PLANNING, Link

from .app import posts

OnAnswer = Callable[[bytes, list[tuple[Any, ...]], float], None]
"""Called with a statement, its rows, and the seconds that it took."""


class WatchedLink(Link):
    def __init__(self, dsn: str, step: str, on_answer: OnAnswer) -> None:
        super().__init__(dsn, step, settings=PLANNING)
        self._on_answer = on_answer

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        asked = time.monotonic()
        rows = await super().execute(statement, params)
        self._on_answer(statement, rows, time.monotonic() - asked)
        return rows


class WatchedWorker(Worker):
    def __init__(
        self, pipeline: Pipeline[Any], dsn: str, on_answer: OnAnswer, *, concurrency: int | None = None
    ) -> None:
        super().__init__(pipeline, dsn, concurrency=concurrency)
        self._link = lambda dsn, step, **_: WatchedLink(dsn, step, on_answer)


async def work(dsn: str, on_answer: OnAnswer) -> None:
    """Runs the worker until SIGTERM."""
    worker = WatchedWorker(posts, dsn, on_answer)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()
