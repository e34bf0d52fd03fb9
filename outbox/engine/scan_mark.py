"""Decides where a claim's scan of a stage's jobs starts: after what earlier scans have passed, or at zero."""

from __future__ import annotations

from collections.abc import Sequence

from ..database.budget import Budget

FULL_SCAN = 1.0
"""Seconds between two scans from zero while jobs are plenty. They find jobs that committed late or came back."""


class ScanMark:
    """Keeps the id below which scans have found nothing, so that they don't walk over dead rows again and again.

    `complete`: the last scan started at zero and found fewer jobs than were asked for.
    """

    def __init__(self) -> None:
        self.complete = False
        self._highest = 0
        self._plenty = False
        self._full_scans = Budget()

    def start(self, now: float) -> int:
        """Returns the id to scan from: zero whenever that is cheap, otherwise where earlier scans have ended."""
        if not self._full_scans.allows(now, least=FULL_SCAN if self._plenty else 0.0):
            return self._highest
        self._full_scans.begin(now)
        return 0

    def found(self, start: int, asked: int, ids: Sequence[int], cost: float) -> None:
        """Records what a scan has found, and how many seconds it took apart from the rows that it found."""
        self._plenty = len(ids) >= asked
        self._highest = max(self._highest, *ids) if ids else self._highest
        self.complete = start == 0 and not self._plenty
        if start == 0:
            self._full_scans.spent(cost)

    def reset(self) -> None:
        """Makes the next scan start at zero, because a job may have come back with an old id."""
        self._full_scans.waive()
