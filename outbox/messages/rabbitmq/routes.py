"""Knows which routing keys lead nowhere at present, and until when their messages may wait."""

from __future__ import annotations

WAIT = 60.0
"""Seconds that a routing key's messages may wait for a queue: a service that is deployed binds its queue by then. After
that, its messages are parked at once, until one of them finds a queue.
"""

REFUSED_WAIT = 3600.0
"""Seconds that they may wait for a queue that refuses them: it is full, or a majority of its nodes is away, and then
RabbitMQ refuses messages until that is back.
"""

MOST = 10_000
"""Routing keys that are remembered: the one that has led nowhere for longest is forgotten, and gets a new time."""


class Routes:
    """Tells how long a message may wait, from when its routing key began to lead nowhere."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def returned(self, routing_key: str, now: float) -> float | None:
        """Notes that there is no queue for a message; returns for how many seconds it may wait, None if for none."""
        return self._left(routing_key, now, WAIT)

    def refused(self, routing_key: str, now: float) -> float | None:
        """Notes that the broker has refused a message to the last; returns for how many seconds it may wait."""
        return self._left(routing_key, now, REFUSED_WAIT)

    def is_missing(self, routing_key: str) -> bool:
        """Returns whether the last message with this routing key went nowhere."""
        return routing_key in self._until

    def routed(self, routing_key: str) -> None:
        """Notes that a queue took a message."""
        if self._until:
            self._until.pop(routing_key, None)

    def _left(self, routing_key: str, now: float, wait: float) -> float | None:
        if routing_key not in self._until and len(self._until) >= MOST:
            del self._until[next(iter(self._until))]
        left = self._until.setdefault(routing_key, now + wait) - now
        return left if left > 0 else None
