"""When a job of a stage with a rate may start: the server's clock as this process sees it, and how late is too late."""

from __future__ import annotations

AHEAD = 0.25
"""Seconds ahead for which a claim takes jobs of a stage with a rate: so few claims carry a slow rate, too."""


SLACK = 0.03
"""Seconds that an attempt may begin late, by which a rate's moments are further apart over a second."""


LATE = SLACK / 2
"""Seconds after its moment until which a job is given to its handler; the rest is for what lies between."""


_CLOCK_HOLDS = 30.0


_LONGEST_LEAD = 1.0


_DRIFT = 0.002


def is_late(moment: float, now: float) -> bool:
    """Whether an attempt may begin no more that had this moment (0: any will do)."""
    return 0 < moment < now - LATE


class ServerClock:
    """How the server's clock stands to this process's: by the quickest of the last exchanges, as in NTP (RFC 5905)."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._noted = -_CLOCK_HOLDS
        self._delay = 0.0
        self.lead = SLACK
        """Seconds from the server's choice of moments to their arrival here: by the last ones, and growing at once."""

    def note(self, sent: float, asked: float, answered: float, received: float) -> None:
        """Take note of an exchange: its ends by this process's clock, what lies between by the server's."""
        delay = max(0.0, (received - sent) - (answered - asked))
        was_set = not answered - received - _DRIFT <= self._ahead <= asked - sent + _DRIFT
        if delay < self._delay or was_set or received - self._noted > _CLOCK_HOLDS:
            self._delay, self._noted = delay, received
            self._ahead = ((asked - sent) + (answered - received)) / 2

    def arrived(self, first: float, received: float) -> None:
        """Take note that the first of some moments, by the server's clock, came here at that time."""
        late = received - self.here(first)
        self.lead = min(_LONGEST_LEAD, self.lead + late) if late > 0 else self.lead * 0.95

    def here(self, moment: float) -> float:
        """Return a moment of the server's as one of this process's monotonic clock."""
        return moment - self._ahead

    def forget(self) -> None:
        """Another server may answer from now on."""
        self._noted = -_CLOCK_HOLDS
