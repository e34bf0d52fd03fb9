"""Runs a command in several processes that start and stop together, and restarts each one that breaks.

A child reports how it ends in a last word: its work is done, or it can't run, because nothing is deployed, say. A child
that ends without a last word ended unasked, whatever its exit code: a handler may have ended it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import sys
import threading
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
"""Seconds before a broken process is restarted. The wait doubles each time, up to the second number. It starts over
after a process that lived for longer than that."""

_LOOK_EVERY = 0.05
"""Seconds between checks for a request to stop, while the parent waits to restart a child."""

_DONE, _REFUSED = b"d", b"r"
"""The last words of a child: it has ended in order, or it would fail in the same way if it was restarted."""

_STOP = (signal.SIGTERM, signal.SIGINT)
"""The signals that the parent passes on to its children."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A child process: the parent's end of its stop pipe, and when it was started by `time.monotonic()`."""

    pipe: int
    started: float


@contextmanager
def last_word(pipe: int | None) -> Iterator[None]:
    """Reports to the parent how this process ends, through its stop pipe if it has one."""
    try:
        yield
    except WorkerBroken:
        raise  # without a last word: a restarted process may be able to go on
    except BaseException:
        _tell(pipe, _REFUSED)
        raise
    _tell(pipe, _DONE)


def _tell(pipe: int | None, word: bytes) -> None:
    if pipe is not None:
        with suppress(OSError):  # the parent has ended
            os.write(pipe, word)


@contextmanager
def ends_with_parent(pipe: int | None) -> Iterator[None]:
    """Ends this process at once if its parent ends within the block, such as during an import that hangs."""
    if pipe is None:
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watching = threading.Thread(target=_leave_with_parent, args=(pipe, theirs.fileno()), daemon=True)
        watching.start()
        try:
            yield
        finally:
            ours.close()
            watching.join()


def _leave_with_parent(pipe: int, done: int) -> None:
    ends = select.poll()
    for end in (pipe, done):
        ends.register(end, 0)  # only that the other side has closed: what it has sent is for others
    if pipe in dict(ends.poll()):
        os._exit(1)


class Supervisor:
    """Starts `count` processes, stops them together, and restarts those that break."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._children: dict[int, _Child] = {}  # key: pid
        self._stops = 0
        self._delays = Delays(FIRST_WAIT, LONGEST_WAIT)
        self._code = 0

    def fork(self) -> int:
        """Starts the children. Returns in each child, never in the parent, with the child's stop pipe.

        A byte in the pipe tells the child to stop. The pipe closes when the parent ends, however that happens. The
        parent passes SIGTERM and SIGINT on in this way, restarts children that end without a last word, and exits when
        all have ended, with the first exit code that isn't 0. If a child reports that it can't run, the parent stops
        the others. It ignores other processes that end below it, such as orphans of handlers in a container. Call this
        before there are connections, threads or an event loop.
        """
        pipe = self._supervise()
        if pipe is None:
            sys.exit(self._code)
        return pipe

    def _supervise(self) -> int | None:
        """Returns None in the parent when all children have ended. Returns the stop pipe in each child at its start."""
        for number in _STOP:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it was inherited as ignored, os.wait would report no child
        for _ in range(self._count):
            if (pipe := self._start()) is not None:
                return pipe
        while self._children:
            pid, status = os.wait()
            child = self._children.pop(pid, None)
            if child is None:
                continue  # an orphan that this process adopted, or a child that was there before
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
        # Signals are blocked until the parent has recorded the child, and the child has dropped the parent's handlers.
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
            # Only the parent may hold its ends of the pipes. Otherwise the pipes don't close when it ends.
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
            with suppress(ConnectionError):  # the child is just ending
                os.write(child.pipe, b".")


def _heard(pipe: int) -> bytes | None:
    """Returns the last word of a child that has ended, or None if there is none."""
    os.set_blocking(pipe, False)  # a process that the child has forked may still hold its end
    with suppress(BlockingIOError, ConnectionError):
        return os.read(pipe, 1) or None
    return None


class StopRequests:
    """Calls `stop` once for each request to stop, whether it comes by a signal, by the stop pipe, or by both.

    A service manager may signal every process of a service. Then a child gets its own signal, and the same request
    again from its parent. Only when one source repeats a request does it count as a second one.
    """

    def __init__(self, stop: Callable[[], object], log: logging.Logger) -> None:
        self._stop, self._log = stop, log
        self._requests: Counter[str] = Counter()

    def listen(self, pipe: int | None, grace: float | None = None) -> None:
        """Listens for signals, and to a stop pipe if there is one, in the running loop. For `grace`, see on_signals."""
        on_signals(lambda: self._request("a signal"), grace)
        if pipe is not None:
            asyncio.get_running_loop().add_reader(pipe, self._read, pipe)

    def _read(self, pipe: int) -> None:
        with suppress(ConnectionError):
            if os.read(pipe, 1):
                self._request("the first process")
                return
        asyncio.get_running_loop().remove_reader(pipe)
        if not self._requests["the first process"]:  # the parent has ended without a request
            self._request("the first process")

    def _request(self, source: str) -> None:
        before = max(self._requests.values(), default=0)
        self._requests[source] += 1
        if self._requests[source] > before:
            self._log.info("stopping: told by %s", source)
            self._stop()
