"""When a job of a stage with a rate may start: start times by the server's clock, kept by this process's."""

from __future__ import annotations

AHEAD = 0.25
"""How far ahead (s) a claim reserves start times, so that a slow rate needs few claims."""

SLACK = 0.03
"""How late (s) an attempt may start. A rate's start times are further apart over a second by as much."""

LATE = SLACK / 2
"""How late (s) a job is still given to its handler. The rest of SLACK is for what lies between."""

_CLOCK_HOLDS = 30.0
"""Seconds for which the quickest exchange with the server tells how the clocks stand; after that they have drifted."""

_LONGEST_LEAD = 1.0
"""The longest time (s) that start times are expected to take to arrive: longer, and a stage would stand still."""

_DRIFT = 0.002
"""By how much (s) two monotonic clocks may drift apart within _CLOCK_HOLDS before one counts as set."""


def is_late(start: float, now: float) -> bool:
    """Whether it is too late to start what had this start time (0: it has none)."""
    return 0 < start < now - LATE


class ServerClock:
    """Tells the server's times by this process's clock, from the quickest of the last exchanges, as in NTP (RFC 5905).

    `lead`: the seconds from the server's choice of start times to their arrival here. It grows at once and shrinks
    slowly.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._noted = -_CLOCK_HOLDS
        self._delay = 0.0
        self.lead = SLACK

    def note(self, sent: float, asked: float, answered: float, received: float) -> None:
        """Learns from an exchange: its ends by this process's clock, what lies between by the server's."""
        delay = max(0.0, (received - sent) - (answered - asked))
        was_set = not answered - received - _DRIFT <= self._ahead <= asked - sent + _DRIFT
        if delay < self._delay or was_set or received - self._noted > _CLOCK_HOLDS:
            self._delay, self._noted = delay, received
            self._ahead = ((asked - sent) + (answered - received)) / 2

    def arrived(self, first: float, received: float) -> None:
        """Learns how long start times take: the first of some, by the server's clock, came here at `received`."""
        late = received - self.here(first)
        self.lead = min(_LONGEST_LEAD, self.lead + late) if late > 0 else self.lead * 0.95

    def here(self, time: float) -> float:
        """Returns a time of the server's clock as one of this process's monotonic clock."""
        return time - self._ahead

    def forget(self) -> None:
        """Starts again: another server may answer from now on."""
        self._noted = -_CLOCK_HOLDS
