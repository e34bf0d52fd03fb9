"""Decides when a worker asks to be notified of new jobs: while they come rarely, and not under load.

A NOTIFY takes a lock over the whole cluster and holds it until its COMMIT is on the disk. So it is the notifications
that are counted here, not the jobs: one claim may find the jobs of many commits, and one commit may bring many jobs.
"""

from __future__ import annotations

from math import inf

PER_SECOND = 100.0
"""Notifications a second that are no burden. With a disk that takes 5 ms, twice as many would be all that it can do."""

BURST = 100.0
"""How many more than that may come at once, or arrivals at random times would look like load."""

PAUSE_FIRST, PAUSE_LONGEST = 1.0, 16.0
"""Seconds for which a worker that was under load doesn't ask again. Doubled while it is under load soon after."""


class Notices:
    """Counts the notifications that came, and remembers when the worker began to ask for them, and when it stopped."""

    def __init__(self) -> None:
        self._level, self._level_at = 0.0, -inf
        self._pause, self._again = PAUSE_FIRST, -inf
        self._asked = -inf

    def heard(self, now: float) -> None:
        """Counts a notification."""
        self._level, self._level_at = self._left(now) + 1, now

    def too_many(self, now: float) -> bool:
        """Returns whether more have come than are no burden."""
        return self._left(now) > BURST

    def may_ask(self, now: float) -> bool:
        """Returns whether the worker may ask for them although it has just had work."""
        return now >= self._again

    def asked(self, now: float) -> None:
        """Records that the worker asks for them from now on."""
        self._asked = now

    def stopped(self, now: float) -> None:
        """Records that the worker asks for them no longer, because it is under load."""
        soon = now - self._asked < self._pause
        self._pause = min(2 * self._pause, PAUSE_LONGEST) if soon else PAUSE_FIRST
        self._again = now + self._pause

    def _left(self, now: float) -> float:
        return max(0.0, self._level - (now - self._level_at) * PER_SECOND)
