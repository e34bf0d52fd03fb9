"""Defines the job of every peer, and measures its time. Uses only the standard library, because each peer imports it.

A workflow is a row of the application's table `workflows`. A step consists of the handler, the change of the row's
status, and the next stage's job, in as few transactions as the peer can. `python -m bench.peers.NAME KIND DSN
WORKFLOWS` does all steps and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

KINDS = ("no-op", "steps", "writes")
"""No-op: one job whose handler does nothing, for twice as many workflows. Writes: steps that also insert a row."""

HOLD = "hold"
"""A no-op whose handler prints when it begins and never ends, because its worker will be killed. Without workflows, it
takes over the job of a killed worker."""

STATUS_AFTER = {"enrich": "ENRICHED", "act": "COMPLETED"}
NEXT = {"enrich": "act"}

SCHEMA = """
    CREATE TABLE workflows (id bigint PRIMARY KEY, status text NOT NULL, steps integer NOT NULL);
    CREATE TABLE effects (workflow bigint NOT NULL, stage text NOT NULL);
"""


@dataclass(slots=True)
class Work:
    """The work of one run, and its progress."""

    kind: str
    dsn: str
    workflows: int
    calls: int = 0
    _began: float = 0.0
    _ended: float = 0.0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_noop(self) -> bool:
        return self.kind in ("no-op", HOLD)

    @property
    def writes(self) -> bool:
        return self.kind == "writes"

    @property
    def jobs(self) -> int:
        return self.workflows * (1 if self.is_noop else len(STATUS_AFTER))

    @property
    def is_done(self) -> bool:
        return self.calls >= self.jobs and self.kind != HOLD

    @property
    def seconds(self) -> float:
        """The time from the start of the first handler to the end of the last one, including its commit.

        It includes neither a peer's start-up, nor its final writes about the ends of the last handlers.
        """
        return self._ended - self._began

    @contextmanager
    def call(self, jobs: int = 1) -> Iterator[None]:
        """Counts the block as `jobs` handler calls, unless it raises."""
        self._began = self._began or time.monotonic()
        if self.kind == HOLD:
            print(self._began, flush=True)
            time.sleep(3_600)
        yield
        with self._counting:  # a peer may call handlers in threads
            self.calls += jobs
            self._ended = time.monotonic()

    async def until_done(self) -> None:
        while not self.is_done:
            await asyncio.sleep(0.01)

    async def until_done_by(self, worker: Awaitable[Any]) -> None:
        """Runs a worker until all is done. Raises if the worker ends by itself."""
        working, watching = asyncio.ensure_future(worker), asyncio.ensure_future(self.until_done())
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            raise RuntimeError("the worker ended before its work")
        working.cancel()
        await asyncio.wait((working,), timeout=10)


def run(
    distribution: str,
    main: Callable[[Work], Coroutine[Any, Any, None]],
    run_async: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Runs a peer's `main` with the arguments of the command line, and prints what it did."""
    kind, dsn, workflows = sys.argv[1:]
    work = Work(kind, dsn, int(workflows))
    run_async(main(work))
    print(
        json.dumps({"seconds": work.seconds, "jobs": work.jobs, "calls": work.calls, "version": version(distribution)})
    )
