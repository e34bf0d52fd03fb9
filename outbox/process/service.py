"""The frame of what runs until it is told to stop: worker, relay and consumer.

`Service.run` checks for a fork, awaits the main coroutine, and closes what is to be closed. Inside, `side_by_side`
keeps loops running beside another, and `until_stop` bounds what may go on after a stop:

    await side_by_side(self._work(), self._heartbeat(), self._housekeeping())

    async def _work(self):
        await self._service.until_stop(self._claim())
        await self._service.until_stop(self._all_ended(), grace=30)
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

from ..errors import OutboxError
from . import forks

log = logging.getLogger("outbox.service")

CANCEL_AGAIN = 1.0
"""Seconds after which a task that goes on is cancelled again: `wait_for` of Python 3.11 may lose a cancellation."""

CANCELLATIONS = 5
"""How often a task is cancelled: what swallows so many goes on without us."""

CLOSE_WITHIN = 5.0
"""Seconds that each thing may take to close: a server that does not answer must not keep a process from ending."""


class Service:
    """Tells a worker, relay or consumer when to stop, and frames its run. `name` is what an error calls it.

    The first `stop` asks: what is under way may end within its grace time. The second one ends it at once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid = os.getpid()
        self._stops = 0
        self._stopped_at = 0.0
        self._told = asyncio.Event()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stops > 0

    @property
    def hurried(self) -> bool:
        """Whether `stop` was called a second time."""
        return self._stops > 1

    def stop(self) -> None:
        """Asks to stop; called again, at once. From another thread: `loop.call_soon_threadsafe(service.stop)`."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stops += 1
        # Wakes all who wait, and leaves the event to be waited for again: there may be a second stop.
        self._told.set()
        self._told.clear()

    async def run(self, main: Callable[[], Awaitable[Any]], *closing: Callable[[], Awaitable[Any]]) -> None:
        """Awaits `main()`, then each of `closing` in turn, whatever else fails.

        OutboxError in a process that was forked after the service was made: connections, locks and random numbers
        would be those of the parent.
        """
        if os.getpid() != self._pid:
            raise OutboxError(f"this {self._name} was made before a fork; make it in the process that runs it")
        enable_loggers()
        self._told = asyncio.Event()  # an event belongs to one loop, and a service may run in a second one afterwards
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            stack.callback(forks.end_serving, loop)
            for close in reversed(closing):
                stack.push_async_callback(_close, close)
            forks.serve(loop)
            await main()

    async def until_stop(self, work: Coroutine[Any, Any, Any], *, grace: float = 0.0) -> bool:
        """Awaits `work`, at most until `grace` seconds after a stop; then cancels it. Returns whether it ended."""
        working, over = asyncio.create_task(work), asyncio.create_task(self._over(grace))
        try:
            await asyncio.wait((working, over), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            await cancel(working, over)

    async def sleep(self, seconds: float) -> bool:
        """Sleeps so many seconds, or until a stop. Returns whether to go on."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped(), seconds)
        return not self.stopping

    async def stopped(self, times: int = 1) -> None:
        """Waits until `stop` was called so often."""
        while self._stops < times:
            await self._told.wait()

    async def _over(self, grace: float) -> None:
        await self.stopped()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped(2), self._stopped_at + grace - time.monotonic())


def enable_loggers() -> None:
    """Enables our loggers again, which `logging.config` disables, unless told not to, when an application calls it.

    Their levels and handlers stay as the application has chosen.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (name == "outbox" or name.startswith("outbox.")):
            logger.disabled = False


async def side_by_side(main: Coroutine[Any, Any, Any], *loops: Coroutine[Any, Any, Any]) -> None:
    """Awaits `main`, with loops beside it that are cancelled when it has ended. The first failure ends all."""
    tasks = [asyncio.create_task(each) for each in (main, *loops)]
    try:
        while not tasks[0].done():
            running = [task for task in tasks if not task.done()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in reversed(tasks):  # a heartbeat's failure is the cause of what fails with it
                if task.done():
                    task.result()
    finally:
        await cancel(*tasks)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until each has ended, unless it swallows its cancellation again and again."""
    for _ in range(CANCELLATIONS):
        if not (running := [task for task in tasks if not task.done()]):
            break
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=CANCEL_AGAIN)
    for task in tasks:
        if not task.done():
            log.error("%s goes on though it was cancelled", getattr(task.get_coro(), "__qualname__", task.get_name()))
        elif not task.cancelled():
            task.exception()  # asyncio logs an exception that was never looked at


def is_cancelled() -> bool:
    """Whether the current task is being cancelled, so that a CancelledError is not one that user code has raised."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread of its own
        return False
    return task is not None and task.cancelling() > 0


class Delays:
    """Yields seconds to wait: `first`, then twice as long each time up to `longest`, until `reset`.

    Up to half of each is taken off at random, so that processes which failed together do not come back together.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    @property
    def grown(self) -> bool:
        """Whether there was a delay since the last reset."""
        return self._next > self._first

    def next(self) -> float:
        """Returns the next delay in seconds."""
        delay, self._next = self._next, min(self._longest, self._next * 2)
        return delay * random.uniform(0.5, 1)

    def reset(self) -> None:
        """Starts again with the first delay."""
        self._next = self._first


class Trouble:
    """What is wrong at present, or None. `say` is called with it only when it changes."""

    def __init__(self, say: Callable[[str | None], object], now: str | None = None) -> None:
        self._say = say
        self.now = now

    def set(self, what: str | None) -> None:
        """Notes what is wrong now; None: nothing any more."""
        if what != self.now:
            self.now = what
            self._say(what)


async def _close(close: Callable[[], Awaitable[Any]]) -> None:
    with suppress(Exception):
        await asyncio.wait_for(close(), CLOSE_WITHIN)
