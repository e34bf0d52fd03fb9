"""Ends the process of a command, whatever handlers have left running.

Python waits at its end for threads, and asyncio for tasks that swallow their cancellation. Neither need ever end.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from .places import place_of

log = logging.getLogger("outbox.process")

T = TypeVar("T")

TURN_WITHIN = 1.0
"""Seconds in which an event loop takes its next turn, unless something blocks it."""

WIND_UP = 15.0
"""Seconds after the grace time in which a loop that turns gives its jobs back and closes its connections."""

CANCEL_WITHIN = 1.0
"""Seconds that cancelled tasks have to end."""

EXIT_WITHIN = 5.0
"""Seconds that Python may wait for threads at its end."""

SAY_WITHIN = 1.0
"""Seconds that the last line may take: a thread that hangs may hold the lock of the log."""


def run(main: Coroutine[Any, Any, T]) -> tuple[T, list[str]]:
    """Runs a coroutine in a loop of its own; returns its result and what is still running then.

    As asyncio.run, but it waits for nothing that doesn't end, and a handler ends neither the loop nor the process.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        result = _insist(loop, loop.create_task(main))
    except BaseException:
        _wind_up(loop)
        exit_soon()
        raise
    return result, _wind_up(loop)


def finish(left: list[str]) -> None:
    """Ends a command whose work is done: at once, with exit code 1, if something is still running."""
    if left:
        leave(f"the process ends, though still running: {', '.join(left)}")
    exit_soon()


def _insist(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> T:
    """Runs the loop until a task has ended, though something else in it exits or stops it."""
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if task.done() or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise
            log.error("%s was raised in a task that a handler has started; it is ignored", type(error).__name__)
        except RuntimeError:
            if task.done():
                raise
            log.error("something has stopped the event loop, such as a handler; it goes on")


def _wind_up(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Cancels what is left in a loop and closes it; returns what didn't end."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    with suppress(Exception):
        if tasks:
            _insist(loop, loop.create_task(_ended(tasks)))
        _insist(loop, loop.create_task(_bounded(loop.shutdown_asyncgens())))
    left = [f"task {_name(task)}" for task in tasks if not task.done()]
    if not left:
        loop.close()
        asyncio.set_event_loop(None)
    return left


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=CANCEL_WITHIN)


async def _bounded(work: Coroutine[Any, Any, Any]) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(work, CANCEL_WITHIN)


def _name(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())


def leave(why: str) -> None:
    """Ends this process with exit code 1, now, after a last line in the log."""
    said = threading.Event()

    def say() -> None:
        log.error("%s", why)
        logging.shutdown()
        said.set()

    _thread.start_new_thread(say, ())
    said.wait(SAY_WITHIN)
    os._exit(1)


def exit_soon(*, main_thread_ends: bool = True) -> None:
    """Has this process end soon after its main thread, though Python would wait for a thread that doesn't end.

    `main_thread_ends`: False if it may wait for ever, too, as asyncio does for tasks that swallow their cancellation.
    """
    _thread.start_new_thread(_exit_soon, (main_thread_ends,))


def after(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Has this process end after so many seconds if its loop stands still then, and soon afterwards in any case.

    Called in a signal handler: a thread that is started in this way needs no lock, which the main thread may hold.
    """
    _thread.start_new_thread(_after, (loop, seconds))


def _after(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    time.sleep(seconds)
    turned = threading.Event()
    with suppress(RuntimeError):  # closed: it is over, and `exit_soon` sees to the rest
        loop.call_soon_threadsafe(turned.set)
        if not turned.wait(TURN_WITHIN):
            place = place_of(threading.main_thread().ident)
            told = "told to stop, and the event loop stands still" + (f" ({place})" if place else "")
            leave(f"{told}: the process ends; its jobs run again")
        time.sleep(WIND_UP)
        if not loop.is_closed():
            leave("told to stop, and still running: the process ends; its jobs run again")


def _exit_soon(main_thread_ends: bool) -> None:
    if main_thread_ends:
        threading.main_thread().join()  # a program that calls the command line goes on after it
    time.sleep(EXIT_WITHIN)
    alive = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon
    ]
    leave(f"the process ends though threads are still running: {', '.join(alive) or 'none'}")
