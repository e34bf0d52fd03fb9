"""Runs services until they are told to stop: worker, relay and consumer.

`Service.run` checks for a fork, awaits the main coroutine, and closes what has to be closed. Inside it, `side_by_side`
keeps loops running beside another, and `until_stop` limits what may go on after a stop:

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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any

from ..errors import OutboxError
from . import forks

log = logging.getLogger("outbox.service")

CANCEL_AGAIN = 1.0
"""Seconds after which a task that goes on is cancelled again: `wait_for` of Python 3.11 may lose a cancellation."""

CANCELLATIONS = 5
"""How often a task is cancelled. One that swallows this many cancellations is left running."""

CLOSE_WITHIN = 5.0
"""Seconds that each resource may take to close: a server that doesn't answer must not keep a process from ending."""


class Service:
    """Runs a worker, relay or consumer, and tells it when to stop. `name` is its name in errors.

    The first `stop` lets running work end within its grace time. The second one ends it at once.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pid: int | None = None  # of the process that has run it
        self._stops = 0
        self._stopped_at = 0.0
        self._told = asyncio.Event()
        self._begun: asyncio.Future[None] | None = None
        self._runs = False
        self.failure: str | None = None
        """What has ended the last run, unless it was a stop."""

    @property
    def running(self) -> bool:
        """Whether it runs, in this process."""
        return self._runs and self._pid == os.getpid()

    @property
    def kind(self) -> str:
        """What it is, in a sentence: worker, relay or consumer."""
        return self._name.lower()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stops > 0

    @property
    def hurried(self) -> bool:
        """Whether `stop` was called a second time."""
        return self._stops > 1

    def stop(self) -> None:
        """Asks to stop; a second call stops at once. From another thread: `loop.call_soon_threadsafe(service.stop)`."""
        self._stopped_at = self._stopped_at or time.monotonic()
        self._stops += 1
        # Wakes all waiters, and leaves the event unset so that they can wait for a second stop.
        self._told.set()
        self._told.clear()

    def expect_begin(self) -> asyncio.Future[None]:
        """Returns a future that is done when the next run, in this loop, has called `begin`."""
        self._begun = asyncio.get_running_loop().create_future()
        return self._begun

    def begin(self) -> None:
        """Tells that the service takes work now. It may be told more than once."""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    async def run(
        self,
        main: Callable[[], Awaitable[Any]],
        *closing: Callable[[], Awaitable[Any]],
        last: Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[None]]
        | None = None,
    ) -> None:
        """Awaits `main()`, then each of `closing` in turn, whatever else fails.

        At the very end, awaits `last` with what has failed, in this task, which is that of `main`.

        A stop before counts for this run, and not for the next one. Raises OutboxError if it runs already, and in a
        process that was forked after a run had begun: it would share its parent's connections and locks.
        """
        if self._pid not in (None, os.getpid()):
            raise OutboxError(f"this {self._name} has run before a fork; make one in the process that runs it")
        if self.running:
            raise OutboxError(f"this {self._name} is running already; make another one")
        self._pid, self._runs, self.failure = os.getpid(), True, None
        try:
            await self._run(main, closing, last)
        except Exception as error:
            # The text of another's error may have a password in it.
            self.failure = str(error) if isinstance(error, OutboxError) else type(error).__name__
            raise
        finally:
            self._runs = False
            self._stops, self._stopped_at = 0, 0.0

    async def _run(
        self, main: Callable[[], Awaitable[Any]], closing: Sequence[Callable[[], Awaitable[Any]]], last: Any
    ) -> None:
        enable_loggers()
        self._told = asyncio.Event()  # an event belongs to one loop, and a service may run again in another
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            if last is not None:
                stack.push_async_exit(last)
            stack.callback(forks.end_serving, loop)
            for close in reversed(closing):
                stack.push_async_callback(_close, close)
            forks.serve(loop)
            await main()

    async def until_stop(self, work: Coroutine[Any, Any, Any], *, grace: float = 0.0) -> bool:
        """Awaits `work`, at most until `grace` seconds after a stop, then cancels it. Returns whether it ended."""
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
        """Sleeps for `seconds`, or until a stop. Returns whether to go on."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped(), seconds)
        return not self.stopping

    async def stopped(self, times: int = 1) -> None:
        """Waits until `stop` was called this many times."""
        while self._stops < times:
            await self._told.wait()

    async def _over(self, grace: float) -> None:
        await self.stopped()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopped(2), self._stopped_at + grace - time.monotonic())


def enable_loggers() -> None:
    """Enables our loggers again. By default, `logging.config` disables them when an application calls it.

    Their levels and handlers stay as the application has set them.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (name == "outbox" or name.startswith("outbox.")):
            logger.disabled = False


async def side_by_side(main: Coroutine[Any, Any, Any], *loops: Coroutine[Any, Any, Any]) -> None:
    """Awaits `main` while loops run beside it, and then cancels them. The first failure ends all."""
    tasks = [asyncio.create_task(each) for each in (main, *loops)]
    try:
        while not tasks[0].done():
            running = [task for task in tasks if not task.done()]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in reversed(tasks):  # the last task first: a heartbeat's failure causes other failures
                if task.done():
                    task.result()
    finally:
        await cancel(*tasks)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until each has ended, unless it keeps swallowing its cancellation."""
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
            task.exception()  # otherwise asyncio logs an exception that was never retrieved


def is_cancelled() -> bool:
    """Returns whether the current task is being cancelled: otherwise user code has raised the CancelledError."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # in a thread without an event loop
        return False
    return task is not None and task.cancelling() > 0


class Delays:
    """Computes back-off delays in seconds: `first`, then doubled each time up to `longest`, until `reset`.

    Up to half of each delay is taken off at random, so that processes that failed together don't retry together.
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
        """Starts over with the first delay."""
        self._next = self._first


class Trouble:
    """Holds what is wrong at present, or None. It calls `say` only when this changes."""

    def __init__(self, say: Callable[[str | None], object], now: str | None = None) -> None:
        self._say = say
        self.now = now

    def set(self, what: str | None) -> None:
        """Sets what is wrong now; None if nothing is."""
        if what != self.now:
            self.now = what
            self._say(what)


async def _close(close: Callable[[], Awaitable[Any]]) -> None:
    with suppress(Exception):
        await asyncio.wait_for(close(), CLOSE_WITHIN)
