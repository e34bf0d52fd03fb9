"""Stops a process on SIGTERM and SIGINT, even while its event loop is blocked."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from . import ending, forks

log = logging.getLogger("outbox.process")

STOPPING = (signal.SIGTERM, signal.SIGINT)

KEEP_EVERY = 1.0
"""Seconds between two checks whether a handler has replaced these signal handlers."""


def on_signals(stop: Callable[[], object], grace: float | None = None) -> None:
    """Calls `stop` in the running loop for each SIGTERM and SIGINT. Does nothing outside the main thread.

    `grace`: seconds after the first signal by which the process should end; after a second signal it should end at
    once. Soon after that time the process is ended with exit code 1, whatever is still running. With None it isn't.
    """
    if threading.current_thread() is threading.main_thread():
        _Hearing(asyncio.get_running_loop(), stop, grace).begin()


class _Hearing:
    """Replaces asyncio's signal handlers, which don't work while the loop is blocked and are inherited by children."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: Callable[[], object], grace: float | None) -> None:
        self._loop, self._stop, self._grace = loop, stop, grace
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()
        self._times = 0

    def begin(self) -> None:
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._heard)
            forks.hear(number)
        self._loop.call_later(KEEP_EVERY, self._keep)

    def _heard(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid or self._loop.is_closed():
            signal.signal(number, self._before[number] or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._times += 1
        if self._grace is not None:
            ending.after(self._loop, self._grace if self._times == 1 else 0.0)
        self._loop.call_soon_threadsafe(self._stop)

    def _keep(self) -> None:
        """Takes the signals back if a handler has replaced them. Otherwise this process could not be stopped."""
        for number in STOPPING:
            now = signal.getsignal(number)
            if now != self._heard and not isinstance(getattr(now, "__self__", None), _Hearing):
                log.warning("something has set another handler for %s; it is set back", signal.Signals(number).name)
                signal.signal(number, self._heard)
        self._loop.call_later(KEEP_EVERY, self._keep)
