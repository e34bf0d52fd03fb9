"""Limits the share of time spent walking over dead rows, which can't be removed while a transaction is open."""

from __future__ import annotations

from math import inf

SHARE = 20
"""It has at most one in so many seconds."""

LONGEST = 10.0
"""Seconds for which it is put off at most: what took long may have waited for something else, a frozen server say."""


class Budget:
    """Says when something dear may be done again, by what it cost the last time. Times in seconds, of one clock."""

    def __init__(self) -> None:
        self._begun = -inf
        self._cost = 0.0

    def allows(self, now: float, *, least: float = 0.0) -> bool:
        """Whether it may be done now. `least` is how long after the last time it is due at the earliest."""
        return now - self._begun >= max(least, min(LONGEST, SHARE * self._cost))

    def begin(self, now: float) -> None:
        self._begun = now

    def spent(self, seconds: float) -> None:
        """Take note of what it cost."""
        self._cost = seconds

    def waive(self) -> None:
        """Allow it the next time, whatever it costs."""
        self._begun = -inf
