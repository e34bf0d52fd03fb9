"""One command in several processes: started together, stopped together, and anew when one of them is killed."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

log = logging.getLogger("outbox.processes")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before a killed process is started again: doubled each time, until one has lived for the longest of them."""

_REFUSED = (1, 2)
"""The exit codes of our commands that failed, or were used wrongly."""

_STOP = (signal.SIGTERM, signal.SIGINT)


def fork(count: int) -> int:
    """Return in each of `count` new processes, with a file to read a byte from for each time that it is told to stop.

    The file ends when the first process does, however it ends. That one doesn't return: it hands SIGTERM and SIGINT
    on in this way, starts anew what was killed, and exits when all have ended, with the first exit code that isn't 0.
    A process that ends with 1 or 2 has said why it can't go on, and the others are told to stop. Call this before there
    are connections, threads or an event loop.
    """
    family = _Family(count)
    leash = family.live()
    if leash is None:
        sys.exit(family.code)
    return leash


class _Family:
    def __init__(self, count: int) -> None:
        self._count = count
        self._living: dict[int, tuple[int, float]] = {}  # by pid: where to tell it, and since when
        self._stops = 0
        self._wait = FIRST_WAIT
        self.code = 0

    def live(self) -> int | None:
        """Return None in the first process when all others have ended, and in each of these, as it begins, its file."""
        for number in _STOP:
            signal.signal(number, self._hand_on)
        for _ in range(self._count):
            if (leash := self._start()) is not None:
                return leash
        while self._living:
            pid, status = os.wait()
            hold, since = self._living.pop(pid)
            os.close(hold)
            code = os.waitstatus_to_exitcode(status)
            if code and code not in _REFUSED and not self._stops:
                self._wait_before_next(pid, code, time.monotonic() - since)
                if (leash := self._start()) is not None:
                    return leash
            elif code and not self.code:
                self.code = code if code > 0 else 1
                self._tell()
        return None

    def _start(self) -> int | None:
        # Blocked until the new process is known here, and until it has forgotten how signals are handled here.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
        try:
            if self._stops:
                return None
            leash, hold = os.pipe()
            pid = os.fork()
            if pid:
                os.close(leash)
                self._living[pid] = hold, time.monotonic()
                return None
            # Nobody but the first process may hold these, or they don't end with it.
            for file in (hold, *(file for file, _ in self._living.values())):
                os.close(file)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return leash
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)

    def _wait_before_next(self, pid: int, code: int, age: float) -> None:
        self._wait = FIRST_WAIT if age > LONGEST_WAIT else self._wait
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        log.error("process %s %s; another one starts in %.1f s", pid, how, self._wait)
        until = time.monotonic() + self._wait
        while not self._stops and time.monotonic() < until:
            time.sleep(0.05)
        self._wait = min(LONGEST_WAIT, self._wait * 2)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        self._tell()

    def _tell(self) -> None:
        self._stops += 1
        for hold, _ in list(self._living.values()):
            with suppress(BrokenPipeError):  # it is just ending
                os.write(hold, b".")
