"""Runs one command in several processes, which start together, stop together, and are restarted when one breaks.

A child says in its last word how it ends: its work is done, or it can't run, as nothing is deployed, say. One that ends
without a word was not asked to, whatever its exit code: a handler may have ended it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from ..errors import WorkerBroken
from ..process.service import Delays
from ..process.signals import on_signals

log = logging.getLogger("outbox.processes")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a killed process is restarted, doubled each time, until one has lived for the longest of them."""

_LOOK_EVERY = 0.05
"""Seconds between two looks whether to stop, while a restart is waited for."""

_DONE, _REFUSED = b"d", b"r"
"""Last words of a child: it has ended in order, or would end in the same way if it was started again."""

_STOP = (signal.SIGTERM, signal.SIGINT)
"""Signals that the parent passes on."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that was started: our end of the stop pipe between us, and when by `time.monotonic()`."""

    pipe: int
    started: float


@contextmanager
def last_word(pipe: int | None) -> Iterator[None]:
    """Tells the first process how this one ends, through its stop pipe if it has one."""
    try:
        yield
    except WorkerBroken:
        raise  # another one may go on
    except BaseException:
        _tell(pipe, _REFUSED)
        raise
    _tell(pipe, _DONE)


def _tell(pipe: int | None, word: bytes) -> None:
    if pipe is not None:
        with suppress(OSError):  # the first process has ended
            os.write(pipe, word)


class Supervisor:
    """Starts `count` processes, stops them together, and restarts those that break."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._children: dict[int, _Child] = {}  # by pid
        self._stops = 0
        self._delays = Delays(FIRST_WAIT, LONGEST_WAIT)
        self._code = 0

    def fork(self) -> int:
        """Returns in each of the child processes, never in the parent. What it returns is the child's stop pipe.

        A byte in the pipe tells the child to stop; the pipe ends when the parent does, however that happens. The parent
        passes SIGTERM and SIGINT on in this way, restarts children that end without a last word, and exits when all
        have ended, with the first exit code that isn't 0. If a child says that it can't run, the others are stopped.
        What else ends below this process, such as orphans of handlers in a container, is none of its business. Call
        this before there are connections, threads or an event loop.
        """
        pipe = self._supervise()
        if pipe is None:
            sys.exit(self._code)
        return pipe

    def _supervise(self) -> int | None:
        """Returns None in the parent when all children have ended, and the stop pipe in each child as it begins."""
        for number in _STOP:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it may be ignored by inheritance: then no end would be told
        for _ in range(self._count):
            if (pipe := self._start()) is not None:
                return pipe
        while self._children:
            pid, status = os.wait()
            child = self._children.pop(pid, None)
            if child is None:
                continue  # an orphan that has come to us, or was there before
            code, word = os.waitstatus_to_exitcode(status), _heard(child.pipe)
            os.close(child.pipe)
            if word is None and not self._stops:
                self._wait_before_restart(pid, code, time.monotonic() - child.started)
                if (pipe := self._start()) is not None:
                    return pipe
            elif (code or word is None) and not self._code:
                self._code = code if code > 0 else 1
                self._stop_children()
        return None

    def _start(self) -> int | None:
        # Signals are blocked until the parent knows the child, and until the child has dropped the parent's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        try:
            if self._stops:
                return None
            ours, theirs = (end.detach() for end in socket.socketpair())
            pid = os.fork()
            if pid:
                os.close(theirs)
                self._children[pid] = _Child(ours, time.monotonic())
                return None
            # Only the parent may hold its own ends, or the pipes don't end with it.
            for pipe in (ours, *(child.pipe for child in self._children.values())):
                os.close(pipe)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return theirs
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)

    def _wait_before_restart(self, pid: int, code: int, lived: float) -> None:
        if lived > LONGEST_WAIT:
            self._delays.reset()
        delay = self._delays.next()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log.error("process %s %s; another one starts in %.1f s", pid, how, delay)
        until = time.monotonic() + delay
        while not self._stops and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._stop_children()

    def _stop_children(self) -> None:
        self._stops += 1
        for child in list(self._children.values()):
            with suppress(ConnectionError):  # it is just ending
                os.write(child.pipe, b".")


def _heard(pipe: int) -> bytes | None:
    """Returns the last word of a child that has ended; None if there is none."""
    os.set_blocking(pipe, False)  # a process that it has forked may hold its end
    with suppress(BlockingIOError, ConnectionError):
        return os.read(pipe, 1) or None
    return None


class StopRequests:
    """Calls `stop` once for each request to stop, whether it comes by a signal, by the stop pipe, or by both.

    A service manager may signal every process of a service: then a child is told by its own signal, and again by its
    parent. A second request is one that the same source has made twice.
    """

    def __init__(self, stop: Callable[[], object], log: logging.Logger) -> None:
        self._stop, self._log = stop, log
        self._requests: Counter[str] = Counter()

    def listen(self, pipe: int | None, grace: float | None = None) -> None:
        """Listens for signals, and to a stop pipe if there is one, in the running loop. `grace`: see on_signals."""
        on_signals(lambda: self._request("a signal"), grace)
        if pipe is not None:
            asyncio.get_running_loop().add_reader(pipe, self._read, pipe)

    def _read(self, pipe: int) -> None:
        with suppress(ConnectionError):
            if os.read(pipe, 1):
                self._request("the first process")
                return
        asyncio.get_running_loop().remove_reader(pipe)
        if not self._requests["the first process"]:  # it has ended, and could not say so
            self._request("the first process")

    def _request(self, source: str) -> None:
        before = max(self._requests.values(), default=0)
        self._requests[source] += 1
        if self._requests[source] > before:
            self._log.info("stopping: told by %s", source)
            self._stop()
