"""Tracks each message of a batch: waiting, in flight, refused for now, confirmed or parked. Sends nothing.

It maps delivery tags to messages, for one channel at a time. Messages in flight when a channel was lost may or may not
have arrived. They wait again, before all others.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ...definition.outcome import Backoff
from ...texts import clean
from ..target import Outgoing, Parked, Unsent
from .routes import WAIT, Routes

UNCONFIRMED = 1_000
"""Most messages in flight: enough for a broker that confirms in batches, few to send again after a crash."""

REFUSED = Backoff(first=0.1, factor=2, max=5.0, attempts=8, jitter=0)
"""Back-off (s) for messages that the broker refuses (nacks): a full queue may soon have room.

No jitter, so that messages refused together keep their order.
"""


@dataclass(slots=True)
class Attempt:
    """A message in flight. `wire_id` names this attempt only; `returned` is why the broker could not route it."""

    message: Outgoing
    wire_id: str
    routing_key: str
    returned: str | None = None


class Batch:
    """Messages in the order of their ids, until each is confirmed or parked.

    `strict`: at most one unconfirmed message of a key, so that order holds through refusals and lost channels; behind
    a parked one the later ones of its key are parked too, as are those of `stopped_keys`; behind one that waits for a
    queue (true) they wait. `routes` knows which routing keys no queue takes, from one batch to the next.
    """

    def __init__(
        self, messages: Collection[Outgoing], stopped_keys: Mapping[str, bool], strict: bool, routes: Routes
    ) -> None:
        self.left = len(messages)
        self.parked: Parked = {}
        self.taken = self.refused = False  # whether the broker has taken a message, or refused one to the last
        self._strict = strict
        self._waiting = deque(messages)
        self._refused: list[tuple[float, int, Outgoing]] = []  # a heap, by when each may be sent again
        self._nacks: dict[int, int] = {}
        self._unconfirmed: dict[int, Attempt] = {}  # by tag, ascending
        self._by_wire_id: dict[str, Attempt] = {}
        self._sent_alone: set[int] = set()  # ids: the broker closed the channel over one of these
        # If strict: which message of a key may be in flight, and what waits for it.
        self._holders: dict[str, int] = {}
        self._behind: defaultdict[str, deque[Outgoing]] = defaultdict(deque)
        self._stopped_keys = dict(stopped_keys)
        # Of routing keys that no queue took before: the message that is tried, those that wait for what becomes of it,
        # and what became of it.
        self._probes: dict[int, str] = {}
        self._followers: dict[str, list[Outgoing]] = {}
        self._unroutable: dict[str, Unsent] = {}
        self._routes = routes

    @property
    def under_way(self) -> int:
        """How many messages the broker has and has not answered for."""
        return len(self._unconfirmed)

    def next(self, now: float) -> Outgoing | None:
        """Returns the message to send now; None if none may be sent."""
        while self._refused and self._refused[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._refused)[2])
        while self._waiting and len(self._unconfirmed) < (1 if self._sent_alone else UNCONFIRMED):
            message = self._waiting.popleft()
            if message.key is None or not self._strict or self._may_go(message, message.key):
                return message
        return None

    def may_go(self, message: Outgoing, routing_key: str) -> bool:
        """Returns whether to send a message now, where only its routing key matters.

        If no queue took that before, one message is sent, and all others do what it does.
        """
        if (first := self._unroutable.get(routing_key)) is not None:
            self._park(replace(first, message=message))
            return False
        if not self._routes.is_missing(routing_key):
            return True
        if self._probes.get(message.id) == routing_key:
            return True  # again
        if routing_key in self._followers:
            self._followers[routing_key].append(message)
            return False
        self._probes[message.id], self._followers[routing_key] = routing_key, []
        return True

    def due(self) -> float:
        """Returns when the next refused message may be sent again."""
        return self._refused[0][0] if self._refused else float("inf")

    def sent(self, message: Outgoing, tag: int, wire_id: str, routing_key: str) -> None:
        """Notes that a message is under way, with the channel's delivery tag."""
        self._unconfirmed[tag] = self._by_wire_id[wire_id] = Attempt(message, wire_id, routing_key)

    def returned(self, wire_id: str, why: str) -> None:
        """Records that an attempt was not routed. It counts when the broker has confirmed that attempt."""
        if wire_id in self._by_wire_id:
            self._by_wire_id[wire_id].returned = why

    def confirmed(self, tag: int, multiple: bool, acked: bool, now: float) -> None:
        """Handles the broker's answer for one message, or for all up to its tag. Unknown tags are ignored."""
        tags = [tag]
        if multiple:
            tags = list(itertools.takewhile(lambda earlier: earlier <= tag, self._unconfirmed))
        for each in tags:
            attempt = self._unconfirmed.pop(each, None)
            if attempt is None:
                continue
            message = attempt.message
            del self._by_wire_id[attempt.wire_id]
            self._sent_alone.discard(message.id)
            if attempt.returned is not None:
                waits = self._routes.returned(attempt.routing_key, now)
                self._set_aside(attempt, attempt.returned, waits)
            elif acked:
                self.taken = True
                self._routes.routed(attempt.routing_key)
                self._unroutable.pop(attempt.routing_key, None)
                self._end(message)
            else:
                self._refuse(attempt, now)

    def lost(self, blame: str | None) -> None:
        """Queues all messages in flight again, because the channel is gone.

        `blame` is the reason, if the broker closed the channel over a message. If only one was in flight, it is parked.
        If there were several, each is sent alone from now on, until the broker has answered for it.
        """
        unknown = [attempt.message for attempt in self._unconfirmed.values()]
        self._unconfirmed.clear()
        self._by_wire_id.clear()
        if blame and len(unknown) == 1:
            self._sent_alone.discard(unknown[0].id)
            self.park(unknown.pop(), f"the broker closed the channel over it: {blame}")
        elif blame:
            self._sent_alone |= {message.id for message in unknown}
        self._waiting.extendleft(sorted(unknown, key=lambda message: message.id, reverse=True))

    def park(self, message: Outgoing, reason: str) -> None:
        """Gives a message up, with the reason."""
        self._park(Unsent(message, clean(reason)))

    def _park(self, unsent: Unsent) -> None:
        message = unsent.message
        self.parked[message.id] = unsent
        if self._strict and message.key is not None:
            self._stopped_keys[message.key] = unsent.waits is not None
        self._end(message)

    def _set_aside(self, attempt: Attempt, why: str, waits: float | None) -> None:
        """Gives a message up for now, with all that follow it."""
        unsent = Unsent(attempt.message, clean(why), clean(attempt.routing_key), waits)
        self._unroutable[attempt.routing_key] = unsent
        for message in (attempt.message, *self._followers.pop(attempt.routing_key, ())):
            self._park(replace(unsent, message=message))

    def _refuse(self, attempt: Attempt, now: float) -> None:
        message = attempt.message
        nacks = self._nacks[message.id] = self._nacks.get(message.id, 0) + 1
        delay = None if self._routes.is_missing(attempt.routing_key) else REFUSED.delay(nacks)
        if delay is None:
            self.refused = True
            waits = self._routes.refused(attempt.routing_key, now)
            self._set_aside(
                attempt, f"the broker refused it {nacks} times" if nacks > 1 else "the broker refused it", waits
            )
        else:
            heapq.heappush(self._refused, (now + delay, message.id, message))

    def _may_go(self, message: Outgoing, key: str) -> bool:
        if key in self._stopped_keys:
            reason = f"behind an earlier parked message of its key {clean(key, 300)!r}"
            self._park(Unsent(message, reason, waits=WAIT if self._stopped_keys[key] else None))
            return False
        if self._holders.setdefault(key, message.id) == message.id:
            return True
        self._behind[key].append(message)
        return False

    def _end(self, message: Outgoing) -> None:
        self.left -= 1
        if message.id in self._probes:  # it found a queue, or is parked for another reason: the others are on their own
            self._waiting.extendleft(reversed(self._followers.pop(self._probes.pop(message.id), ())))
        key = message.key
        if key is not None and self._holders.get(key) == message.id:
            del self._holders[key]
            if behind := self._behind[key]:
                self._waiting.appendleft(behind.popleft())
                self._holders[key] = self._waiting[0].id
            else:
                del self._behind[key]
