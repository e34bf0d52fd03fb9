"""Knows which routing keys no queue takes, and since when."""

from __future__ import annotations

WAIT = 60.0
"""Seconds that a routing key's messages may wait for a queue: a service that is deployed binds its queue by then. After
that, its messages are parked at once, until one of them finds a queue.
"""

MOST = 10_000
"""Routing keys that are remembered: the one that has been unroutable for longest is forgotten, and gets a new time."""


class Routes:
    """Tells how long a message that was returned may wait, from when its routing key began to be unroutable."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def returned(self, routing_key: str, now: float) -> float | None:
        """Notes that no queue took a message; returns for how many seconds it may wait, None if for none."""
        if routing_key not in self._since and len(self._since) >= MOST:
            del self._since[next(iter(self._since))]
        left = self._since.setdefault(routing_key, now) + WAIT - now
        return left if left > 0 else None

    def routed(self, routing_key: str) -> None:
        """Notes that a queue took a message."""
        if self._since:
            self._since.pop(routing_key, None)
