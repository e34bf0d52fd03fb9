"""Defines the job of every subject, and measures it. Uses only the standard library, because each subject imports it.

A workflow is a row of the application's table `workflows`. Each of its two steps asks a service by HTTP, then changes
the row's status and makes the next step's job, in as few transactions as the subject can. A step that is refused is
tried again by the subject's own means, after PAUSE. `python -m bench.calls.NAME DSN PORT WORKFLOWS` does all of them.
When the first handler begins, it prints a line and waits for one. When all have ended, it prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

PAUSE = 1.0
"""Seconds after which a refused request is to be made again: the service's Retry-After."""

TRIES = 10
"""More than a step ever needs."""

CONNECTIONS = 20
"""Of the pool for the handlers' transactions."""

BEGAN = "began"
REFUSED = (429, 503)


class Busy(Exception):
    """Raised for an answer 429 or 503."""


@dataclass(slots=True)
class Work:
    """The work of one run, and its progress."""

    dsn: str
    port: int
    workflows: int
    ended: dict[int, float] = field(default_factory=dict)
    """For each workflow: when its last transaction was committed, on this process's monotonic clock."""
    _began: float = 0.0
    _cpu: float = 0.0

    async def ask(self, workflow: int, stage: str) -> None:
        """Asks the service. Raises Busy if it refuses."""
        self.begin()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path(workflow, stage)} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
        _check(int(answer.split(b" ", 2)[1]))

    def ask_sync(self, workflow: int, stage: str) -> None:
        """Asks the service. Raises Busy if it refuses."""
        self.begin()
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request("GET", path(workflow, stage))
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        _check(answer.status)

    def begin(self) -> None:
        """Starts the clocks with the first handler, when the process that measures has looked at its own."""
        if not self._began:
            print(BEGAN, flush=True)
            sys.stdin.readline()
            self._began, self._cpu = time.monotonic(), time.process_time()

    def end(self, workflow: int) -> None:
        """Notes that the last transaction of a workflow was committed."""
        self.ended[workflow] = time.monotonic()

    @property
    def is_done(self) -> bool:
        return len(self.ended) >= self.workflows

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

    def report(self, distribution: str) -> str:
        """Returns one line of JSON for the process that measures. Memory is in MB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return json.dumps(
            {
                "ended": {workflow: ended - self._began for workflow, ended in self.ended.items()},
                "cpu": time.process_time() - self._cpu,
                "peak": peak / (2**20 if sys.platform == "darwin" else 2**10),
                "version": version(distribution),
            }
        )


def path(workflow: int, stage: str) -> str:
    return f"/{stage}/{workflow}"


def run(
    distribution: str,
    main: Callable[[Work], Coroutine[Any, Any, None]],
    run_async: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Runs a subject's `main` with the arguments of the command line, and prints what it did."""
    dsn, port, workflows = sys.argv[1:]
    work = Work(dsn, int(port), int(workflows))

    async def whole() -> None:
        await main(work)
        leave(work, distribution)

    run_async(whole())


def leave(work: Work, distribution: str) -> None:
    """Prints what was done, and ends the process: how a subject winds down is not measured."""
    print(work.report(distribution), flush=True)
    os._exit(0)


def _check(status: int) -> None:
    if status in REFUSED:
        raise Busy(status)
    if status != http.client.OK:
        raise RuntimeError(f"the service has answered {status}")
