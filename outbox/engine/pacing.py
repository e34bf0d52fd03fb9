"""Decides when jobs of a stage with a rate may start: the server's clock sets start times, and this one keeps them."""

from __future__ import annotations

AHEAD = 0.25
"""How far ahead (s) a claim reserves start times, so that a slow rate needs few claims."""

SLACK = 0.03
"""How late (s) an attempt may start. Start times are spaced as if a second were longer by this, to keep the rate."""

LATE = SLACK / 2
"""How late (s) a job may be given to its handler. The rest of SLACK covers the time until the handler is called."""

_CLOCK_HOLDS = 30.0
"""Seconds for which the quickest exchange with the server is trusted. After that, the clocks have drifted."""

_LONGEST_LEAD = 1.0
"""The longest time (s) that start times are expected to take to arrive. With a longer one, a stage could stall."""

_DRIFT = 0.002
"""How far (s) two monotonic clocks may drift apart within _CLOCK_HOLDS. More means that one was set."""


def is_late(start: float, now: float) -> bool:
    """Returns whether it is too late to start a job with this start time (0: it has none)."""
    return 0 < start < now - LATE


class ServerClock:
    """Converts the server's times to this process's clock, from the quickest recent exchange, as NTP does (RFC 5905).

    `lead`: seconds from the server's choice of start times to their arrival here. It grows at once and shrinks slowly.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._noted = -_CLOCK_HOLDS
        self._delay = 0.0
        self.lead = SLACK

    def note(self, sent: float, asked: float, answered: float, received: float) -> None:
        """Learns from an exchange: its ends are by this process's clock, the times between by the server's."""
        delay = max(0.0, (received - sent) - (answered - asked))
        was_set = not answered - received - _DRIFT <= self._ahead <= asked - sent + _DRIFT
        if delay < self._delay or was_set or received - self._noted > _CLOCK_HOLDS:
            self._delay, self._noted = delay, received
            self._ahead = ((asked - sent) + (answered - received)) / 2

    def arrived(self, first: float, received: float) -> None:
        """Learns how long start times take to arrive: `first`, by the server's clock, arrived here at `received`."""
        late = received - self.here(first)
        self.lead = min(_LONGEST_LEAD, self.lead + late) if late > 0 else self.lead * 0.95

    def here(self, time: float) -> float:
        """Converts a time of the server's clock to this process's monotonic clock."""
        return time - self._ahead

    def forget(self) -> None:
        """Starts over, because another server may answer from now on."""
        self._noted = -_CLOCK_HOLDS
