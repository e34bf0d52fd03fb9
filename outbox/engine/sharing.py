"""Decides how many waiting jobs of a stage take turns in one transaction, and how many such transactions run at once.

A lock that a handler takes is held until the common COMMIT, so the whole stays short, waits for locks are bounded, and
few transactions are shared at a time. A stage shares less where that doesn't pay, for a number of jobs that doubles
each time: each job has its own transaction if the handlers are slow, or if the stage has ended fewer jobs a second by
sharing. If the transactions wait for each other's locks, only one is shared at a time: it meets none of its process.
"""

from __future__ import annotations

import logging
import time

from ..texts import printable

log = logging.getLogger("outbox.worker")

LONGEST = 0.02
"""Seconds of handlers' time in one transaction: no turn begins that would end later, if it is like the others."""

LOCK_WAIT = 0.05
"""Seconds that a turn, or the end of such a transaction, waits for a lock. Other jobs' locks are held meanwhile."""

FIRST = 1
"""Jobs in the first transaction of a process: it is not known yet how long a handler takes."""

AT_ONCE = 2
"""Transactions that a process shares at once, or one for each stage: the more handlers run, the fewer fit into each."""

SLOW = 3
"""Transactions in a row with time for one handler, after which handlers count as slow. One may be slow by chance."""

TRY_AGAIN, MOST_JOBS = 200, 100_000
"""Jobs after which a stage shares as before, at first and at last."""

MOST_SLOW = 2_000
"""The same at last where handlers count as slow. A busy machine makes any handler slow, and to ask costs three jobs."""

WINDOW_JOBS, WINDOW = 100, 0.2
"""Jobs and seconds, at least, by which the rates with and without sharing are compared."""

COMPARE_IN, MOST_COMPARE_IN, LONGER = 8, 512, 4
"""Windows after which they are compared, at first and at last, and how many times as many each time.

In the window without sharing, a job takes several times as long, so more of them would be felt.
"""

WORSE = 0.8
"""The part of the rate without sharing below which sharing doesn't pay. Noise is less than that."""


class Sharing:
    """What one stage shares in this process, at most `most` jobs in a transaction."""

    def __init__(self, queue: str, most: int) -> None:
        self._queue, self._most = queue, most
        self._size = FIRST
        self._never = False
        self._slow = 0  # transactions in a row that had time for one handler only
        self._alone = self._single = 0  # for how many more jobs
        self._next_alone = self._next_single = TRY_AGAIN
        self._compare_in = COMPARE_IN  # windows until the rate without sharing is measured
        self._compare_next = LONGER * COMPARE_IN
        self._comparing = False  # alone only until the rate is known
        self._rate_alone = 0.0
        self._jobs, self._time, self._since = 0, 0.0, 0.0

    def size(self, running: int, *, beside: bool = False) -> int:
        """Returns how many jobs the next transaction takes at most, beside `running` others. 0: it waits for them.

        `beside`: another stage of this process shares at this moment.
        """
        if self._never or self._alone > 0 or self._size == 1:
            return 1
        return self._size if running < (1 if self._single > 0 or beside else AT_ONCE) else 0

    def slots(self, concurrency: int) -> int:
        """Returns how many jobs may be with handlers, or wait for their turns, where `concurrency` transactions run."""
        return max(concurrency, min(concurrency, AT_ONCE) * self.size(0))

    def had_own(self, seconds: float, running: int, *, waiting: bool) -> None:
        """Notes the end of a transaction with one job, whose handler took so many seconds beside `running` others."""
        if self._alone <= 0 and 2 * seconds / max(running, 1) < LONGEST:  # they have delayed each other
            self._size = min(self._most, max(self._size, 2))
        self.ended(1, cut=False, waiting=waiting)

    def ended(self, jobs: int, *, cut: bool, waiting: bool) -> None:
        """Notes the end of a transaction with so many jobs. `cut`: it was ended for its time; `waiting`: more wait."""
        was_alone = self._alone > 0
        if was_alone:
            self._alone -= jobs
        elif cut:
            self._size = max(jobs, 2)
            self._slow = self._slow + 1 if jobs == 1 else 0
            if self._slow >= SLOW:
                self._slow, self._size = 0, 1
                self._have_own(MOST_SLOW)
        else:
            self._slow = 0
            if jobs == self._size > 1:
                self._size = min(self._most, 2 * jobs)
            self._single -= min(jobs, self._single)
            self._next_single = max(TRY_AGAIN, self._next_single - jobs * (not self._single))
        self._measure(jobs, was_alone, waiting)

    def conflicted(self) -> None:
        """Notes that a transaction gave up a wait for a lock."""
        if self._single > 0:
            self._have_own()
        elif self._alone <= 0:
            self._single, self._next_single = self._next_single, min(2 * self._next_single, MOST_JOBS)

    def never(self, why: str) -> None:
        """Gives each job of this stage a transaction of its own from now on, and logs it once."""
        if not self._never:
            self._never = True
            log.warning("%s: its jobs have transactions of their own from now on: %s", self._queue, printable(why))

    def _have_own(self, most: int = MOST_JOBS) -> None:
        if self._alone <= 0:
            self._alone = min(self._next_alone, most)
            self._next_alone = min(2 * self._next_alone, max(most, self._next_alone))
            self._comparing = False
            self._restart()

    def _measure(self, jobs: int, was_alone: bool, waiting: bool) -> None:
        """Compares the jobs a second with and without sharing, while more wait than are at work."""
        now = time.monotonic()
        if self._since:
            self._jobs, self._time = self._jobs + jobs, self._time + now - self._since
        self._since = now if waiting else 0.0
        if self._jobs < WINDOW_JOBS or self._time < WINDOW:
            if was_alone and self._alone <= 0:
                self._restart()
            return
        rate = self._jobs / self._time
        self._restart()
        if was_alone:
            self._rate_alone = rate
            if self._comparing:
                self._alone = 0
        elif rate < WORSE * self._rate_alone:
            self._have_own()
        elif self._compare_in > 0:
            self._compare_in -= 1
            self._next_alone = max(TRY_AGAIN, self._next_alone // 2)
        else:
            self._compare_in, self._compare_next = self._compare_next, min(LONGER * self._compare_next, MOST_COMPARE_IN)
            self._alone, self._comparing = 2 * WINDOW_JOBS, True

    def _restart(self) -> None:
        self._jobs, self._time, self._since = 0, 0.0, 0.0
