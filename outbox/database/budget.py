"""Limits the share of time spent on walking over dead rows, which Postgres can't remove while a transaction is open."""

from __future__ import annotations

from math import inf

SHARE = 20
"""The action may take one in this many seconds."""

LONGEST = 10.0
"""Longest delay in seconds. A slow run may have waited for something else, such as a frozen server."""


class Budget:
    """Decides when an expensive action may run again, by its last cost. All times are seconds of one clock."""

    def __init__(self) -> None:
        self._begun = -inf
        self._cost = 0.0

    def allows(self, now: float, *, least: float = 0.0) -> bool:
        """Returns whether the action may run now. `least` is the minimum number of seconds since the last time."""
        return now - self._begun >= max(least, min(LONGEST, SHARE * self._cost))

    def begin(self, now: float) -> None:
        self._begun = now

    def spent(self, seconds: float) -> None:
        """Records the cost of the last run."""
        self._cost = seconds

    def waive(self) -> None:
        """Allows the next run, whatever it costs."""
        self._begun = -inf
