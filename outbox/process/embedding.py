"""Runs a worker, consumer or relay inside an application: `async with` in its event loop, or `with` in a thread.

The block begins when the service takes work, and its end stops the service with its grace time. A service that ends by
itself does not cancel the block: a web server would go on without what its lifespan has closed. It is logged at once,
`health` tells it to the probes, and the end of the block raises it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from ..errors import OutboxError, WorkerBroken
from .service import Service

log = logging.getLogger("outbox.service")


@dataclass(frozen=True, slots=True)
class Health:
    """How a worker, consumer or relay is. To ask costs no query, and any thread may ask.

    `running`: it was started, and has not ended. `listening`: it is registered, and takes work as it comes; a relay
    also while another process holds its name. `stopping`: it was told to stop. `heartbeat` is how many seconds ago the
    database answered last that it still has this process; None if it never did. `in_flight` attempts are running,
    `waiting` jobs are claimed and not started, `uncommitted` outcomes are not in the database yet. `reason` says why it
    does not work; None if it does.
    """

    running: bool
    listening: bool
    stopping: bool
    heartbeat: float | None
    in_flight: int
    waiting: int
    uncommitted: int
    reason: str | None

    @property
    def ok(self) -> bool:
        """Whether it works. Otherwise `reason` says why it doesn't."""
        return self.reason is None


@dataclass(frozen=True, slots=True)
class Signs:
    """What a service that runs tells of itself. `beaten` is by `time.monotonic()`, and good for `trusted` seconds."""

    listening: bool = False
    beaten: float | None = None
    trusted: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    uncommitted: int = 0
    trouble: str | None = None


class Embedded(ABC):
    """What a worker, a consumer and a relay have in common: a block in which they run, and their health."""

    _service: Service
    _running: asyncio.Task[None] | None = None
    _cancelled = False
    _in_thread: _InThread | None = None

    @abstractmethod
    async def run(self) -> None:
        """Works until `stop`."""

    @abstractmethod
    def _signs(self) -> Signs:
        """Returns how the parts of the present run are, from any thread."""

    def health(self) -> Health:
        """Returns how it is. Cheap enough for every probe: no query, and any thread may call it."""
        service = self._service
        if not service.running:
            ended = f": {service.failure}" if service.failure else ""
            return Health(False, False, False, None, 0, 0, 0, f"the {service.kind} is not running{ended}")
        signs = self._signs()
        heartbeat = None if signs.beaten is None else max(0.0, time.monotonic() - signs.beaten)
        if service.stopping:
            reason: str | None = f"the {service.kind} is stopping"
        elif signs.trouble is not None:
            reason = signs.trouble
        elif not signs.listening:
            reason = f"the {service.kind} does not take work yet: it waits for what it needs"
        elif heartbeat is not None and heartbeat > signs.trusted:
            reason = f"the database has answered no heartbeat for {heartbeat:.0f} s"
        else:
            reason = None
        return Health(
            True, signs.listening, service.stopping, heartbeat,
            signs.in_flight, signs.waiting, signs.uncommitted, reason,
        )  # fmt: skip

    async def __aenter__(self) -> Self:
        """Returns when it takes work. Raises what `run` raises until then."""
        if self._running is not None:
            raise _already(self._service)
        begun = self._service.expect_begin()
        self._cancelled = False
        self._running = running = asyncio.create_task(self._run(begun), name=f"outbox {self._service.kind}")
        try:
            await asyncio.wait((running, begun), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        except BaseException:
            self._running = None
            await self._cancel(running)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it, and waits for its end. Cancelled meanwhile, it cancels what runs.

        Raises what has ended it, unless the block has raised.
        """
        running = self._running
        assert running is not None
        if not running.done():
            self._service.stop()
            try:
                await asyncio.wait((running,))
            except asyncio.CancelledError:
                self._running = None
                await self._cancel(running)
                raise
        self._running = None
        if error is None:
            running.result()
        elif not running.cancelled():
            running.exception()  # it was logged

    def __enter__(self) -> Self:
        """Runs it in an event loop in a thread of its own, and returns when it takes work: see `__aenter__`."""
        if self._in_thread is not None:
            raise _already(self._service)
        self._in_thread = running = _InThread(self)
        try:
            running.begun.result()
        except BaseException:
            running.end()
            self._in_thread = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it, and waits for its end. Raises what has ended it, unless the block has raised."""
        running, self._in_thread = self._in_thread, None
        assert running is not None
        running.end()
        ended_by = running.ended.exception()
        if error is None and ended_by is not None:
            raise ended_by

    async def _run(self, begun: asyncio.Future[None]) -> None:
        try:
            await self.run()
        except asyncio.CancelledError:
            if self._cancelled:
                raise
            told = f"the {self._service.kind}'s own tasks were cancelled, as by a handler that cancels all tasks"
            log.error("%s", told)
            raise WorkerBroken(told) from None
        except Exception as error:
            if begun.done():
                told = "the %s has ended, and this process goes on without it: %s"
                log.error(told, self._service.kind, self._service.failure or type(error).__name__)
            raise

    async def _cancel(self, running: asyncio.Task[None]) -> None:
        """Ends the run at once, and waits until it has released its jobs. Cancelled meanwhile, it doesn't wait."""
        self._cancelled = True
        for _ in range(2 if self._service.running else 0):
            self._service.stop()  # also in case that `wait_for` of Python 3.11 loses the cancellation
        running.cancel()  # once: what it does at its end must not be cancelled
        await asyncio.wait((running,))
        if not running.cancelled():
            running.exception()  # marks it as retrieved


class _InThread:
    """The block in an event loop in a thread of its own. `begun` and `ended` hold what is raised before and in it."""

    def __init__(self, service: Embedded) -> None:
        self.begun: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._end = threading.Event()
        self._wake: Callable[[], object] = self._end.set
        name = f"outbox {type(service).__name__.lower()}"
        threading.Thread(target=self._work, args=(service,), name=name, daemon=True).start()

    def end(self) -> None:
        """Asks the block to end."""
        self._end.set()
        with suppress(RuntimeError):  # its loop is closed
            self._wake()

    def _work(self, service: Embedded) -> None:
        try:
            asyncio.run(self._block(service))
        except BaseException as error:
            (self.ended if self.begun.done() else self.begun).set_exception(error)
        else:
            self.ended.set_result(None)

    async def _block(self, service: Embedded) -> None:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        self._wake = partial(loop.call_soon_threadsafe, end.set)
        if self._end.is_set():
            return
        async with service:
            self.begun.set_result(None)
            await end.wait()


def _already(service: Service) -> OutboxError:
    return OutboxError(f"this {service.kind} is running already; make another one")
