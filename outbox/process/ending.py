"""Ends the process of a command, whatever handlers have left running.

At its end, Python waits for threads, and asyncio for tasks that swallow their cancellation. Either wait may never end.
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
"""Seconds after the grace time in which a running loop releases its jobs and closes its connections."""

CANCEL_WITHIN = 1.0
"""Seconds that cancelled tasks may take to end."""

EXIT_WITHIN = 5.0
"""Seconds that Python may wait for threads at its end."""

SAY_WITHIN = 1.0
"""Seconds that writing the last log line may take: a thread that hangs may hold the logging lock."""


def run(main: Coroutine[Any, Any, T]) -> tuple[T, list[str]]:
    """Runs a coroutine in an event loop of its own; returns its result and the names of what is still running.

    Like asyncio.run, but it doesn't wait for what never ends, and no handler can end the loop or the process.
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
    """Ends a command whose work is done. If something is still running, it exits at once with exit code 1."""
    if left:
        leave(f"the process ends, though still running: {', '.join(left)}")
    exit_soon()


def _insist(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> T:
    """Runs the loop until a task has ended, even if something else in the loop exits or stops it."""
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
    """Cancels the remaining tasks of a loop and closes it; returns the names of those that didn't end."""
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
    """Ends this process at once with exit code 1, after a last log line."""
    said = threading.Event()

    def say() -> None:
        log.error("%s", why)
        logging.shutdown()
        said.set()

    _thread.start_new_thread(say, ())
    said.wait(SAY_WITHIN)
    os._exit(1)


def exit_soon(*, main_thread_ends: bool = True) -> None:
    """Ends this process soon after its main thread, even if a thread that doesn't end would keep Python waiting.

    `main_thread_ends`: False if the main thread may never end either, such as when asyncio waits for a task that
    swallows its cancellation.
    """
    _thread.start_new_thread(_exit_soon, (main_thread_ends,))


def after(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Ends this process after `seconds` if its event loop is blocked then, and soon afterwards in any case.

    It is called in a signal handler: starting a thread in this way needs no lock that the main thread may hold.
    """
    _thread.start_new_thread(_after, (loop, seconds))


def _after(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    time.sleep(seconds)
    turned = threading.Event()
    with suppress(RuntimeError):  # the loop is closed: the run is over, and `exit_soon` does the rest
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
        threading.main_thread().join()  # if a program called the command line, its main thread goes on afterwards
    time.sleep(EXIT_WITHIN)
    alive = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon
    ]
    leave(f"the process ends though threads are still running: {', '.join(alive) or 'none'}")
