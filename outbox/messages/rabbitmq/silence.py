"""Measures for how long a broker has confirmed nothing of what it was sent, and says when to leave it."""

from __future__ import annotations

SAID_AFTER = 10.0
"""Seconds without a confirm after which it is said; again after twice as long, and so on. A healthy broker takes less
than one, even to write to the disks of several nodes.
"""

LEFT_AFTER = 60.0
"""Seconds without a confirm after which the connection is given up, and the next broker is tried: a quorum queue needs
seconds for a new leader. What is under way is sent again elsewhere, and may come twice.
"""

LEFT_AT_MOST_AFTER = 960.0
"""Seconds to which that grows, doubled each time: each time, the broker may keep one more copy of what is under way."""

_LONGEST_STEP = 2.0
"""Seconds that count between two looks, at most: a process that was frozen has not given its broker the time."""


class Silence:
    """The time without a confirm: `seconds`, and `said`, what of it should be told, 0 while that is nothing."""

    def __init__(self) -> None:
        self._looked: float | None = None
        self.end()

    def end(self) -> None:
        """Notes that the broker has answered for a message."""
        self.said = self.seconds = self._on_this_connection = 0.0
        self._patience = LEFT_AFTER

    def look(self, now: float, waiting: bool) -> None:
        """Adds the time since the last look, if messages have been under way since then."""
        if waiting and self._looked is not None:
            passed = min(now - self._looked, _LONGEST_STEP)
            self.seconds += passed
            self._on_this_connection += passed
        self._looked = now if waiting else None
        following = self.said * 2 or SAID_AFTER
        if self.seconds >= following:
            self.said = following

    def is_too_long(self) -> bool:
        """Returns whether to leave this connection. The next one is then given twice the time."""
        if self._on_this_connection < self._patience:
            return False
        self._on_this_connection, self._looked = 0.0, None
        self._patience = min(2 * self._patience, LEFT_AT_MOST_AFTER)
        return True
