"""Where each message of a batch stands: waiting, under way, refused for now, done or parked. Nothing here sends.

A map from delivery tag to message, of one channel at a time. What was under way when a channel was lost is unknown,
and waits again, before all others.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ...texts import clean, printable
from ..log import Outgoing
from .connection import pause

log = logging.getLogger("outbox.relay")

UNCONFIRMED = 1_000
MOST_NACKS = 8


@dataclass(slots=True)
class Attempt:
    """A message under way. `wire_id` is this attempt's own; `returned` is why the broker could not route it."""

    message: Outgoing
    wire_id: str
    returned: str | None = None


class Batch:
    """Messages in the order of their ids, until each is confirmed or parked.

    `strict`: at most one unconfirmed message of a key, so that order holds through refusals and lost channels; behind
    a parked one the later ones of its key are parked too, as are those of `stopped_keys`.
    """

    def __init__(self, messages: Collection[Outgoing], stopped_keys: Iterable[str], strict: bool) -> None:
        self.left = len(messages)
        self.parked: dict[int, tuple[Outgoing, str]] = {}
        self._strict = strict
        self._waiting = deque(messages)
        self._refused: list[tuple[float, int, Outgoing]] = []  # a heap: when it may go again
        self._nacks: dict[int, int] = {}
        self._unconfirmed: dict[int, Attempt] = {}  # by tag, ascending
        self._by_wire_id: dict[str, Attempt] = {}
        self._suspects: set[int] = set()
        # Strict: which message of a key may be under way, and what waits for it.
        self._holders: dict[str, int] = {}
        self._behind: defaultdict[str, deque[Outgoing]] = defaultdict(deque)
        self._stopped_keys = set(stopped_keys)

    def next(self, now: float) -> Outgoing | None:
        """Return what is to be sent now; None if nothing may go."""
        while self._refused and self._refused[0][0] <= now:
            self._waiting.appendleft(heapq.heappop(self._refused)[2])
        while self._waiting and len(self._unconfirmed) < (1 if self._suspects else UNCONFIRMED):
            message = self._waiting.popleft()
            if message.key is None or not self._strict or self._may_go(message, message.key):
                return message
        return None

    def due(self) -> float:
        """Return when the next one that was refused may go again."""
        return self._refused[0][0] if self._refused else float("inf")

    def sent(self, message: Outgoing, tag: int, wire_id: str) -> None:
        self._unconfirmed[tag] = self._by_wire_id[wire_id] = Attempt(message, wire_id)

    def returned(self, wire_id: str, why: str) -> None:
        """Take note that an attempt was not routed: it counts when the broker has confirmed that attempt."""
        if wire_id in self._by_wire_id:
            self._by_wire_id[wire_id].returned = why

    def confirmed(self, tag: int, multiple: bool, acked: bool, now: float) -> None:
        """Settle one message, or all up to its tag. An answer for what is not under way changes nothing."""
        tags = [tag]
        if multiple:
            tags = list(itertools.takewhile(lambda earlier: earlier <= tag, self._unconfirmed))
        for each in tags:
            attempt = self._unconfirmed.pop(each, None)
            if attempt is None:
                continue
            message = attempt.message
            del self._by_wire_id[attempt.wire_id]
            self._suspects.discard(message.id)
            if attempt.returned is not None:
                self.park(message, attempt.returned)
            elif acked:
                self._settle(message)
            elif self._nacks.get(message.id, 0) + 1 == MOST_NACKS:
                self.park(message, f"the broker refused it {MOST_NACKS} times")
            else:
                nacks = self._nacks[message.id] = self._nacks.get(message.id, 0) + 1
                heapq.heappush(self._refused, (now + pause(nacks), message.id, message))

    def lost(self, blame: str | None) -> None:
        """Have all that was under way sent again: the channel is gone.

        `blame` is why, if the broker closed it over a message. If one alone was under way it is the one, and is parked;
        of several, each goes alone from now on, until the broker has answered for it.
        """
        unknown = [attempt.message for attempt in self._unconfirmed.values()]
        self._unconfirmed.clear()
        self._by_wire_id.clear()
        if blame and len(unknown) == 1:
            self._suspects.discard(unknown[0].id)
            self.park(unknown.pop(), f"the broker closed the channel over it: {blame}")
        elif blame:
            self._suspects |= {message.id for message in unknown}
        self._waiting.extendleft(sorted(unknown, key=lambda message: message.id, reverse=True))

    def park(self, message: Outgoing, reason: str) -> None:
        """Give a message up, for this reason."""
        self.parked[message.id] = message, clean(reason)
        log.warning("message %s (%s) is parked: %s", message.id, printable(message.topic), printable(reason))
        if self._strict and message.key is not None:
            self._stopped_keys.add(message.key)
        self._settle(message)

    def _may_go(self, message: Outgoing, key: str) -> bool:
        if key in self._stopped_keys:
            self.park(message, f"behind an earlier parked message of its key {clean(key, 300)!r}")
            return False
        if self._holders.setdefault(key, message.id) == message.id:
            return True
        self._behind[key].append(message)
        return False

    def _settle(self, message: Outgoing) -> None:
        self.left -= 1
        key = message.key
        if key is not None and self._holders.get(key) == message.id:
            del self._holders[key]
            if behind := self._behind[key]:
                self._waiting.appendleft(behind.popleft())
                self._holders[key] = self._waiting[0].id
            else:
                del self._behind[key]
