"""Defines what a relay sends, and the target, which knows nothing of the relay. See rabbitmq/ and handoff.py."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..process.service import Trouble
from ..texts import printable

log = logging.getLogger("outbox.relay")

LEASE = 5.0
"""Seconds without a heartbeat after which another process takes over a relay's name: a few missed heartbeats."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An outgoing message. `payload` and `headers` are JSON texts; `id` is its place in the log."""

    id: int
    message_id: str
    topic: str
    key: str | None
    payload: str | None
    headers: str | None
    created_at: datetime
    workflow_id: str | None = None


@dataclass(frozen=True, slots=True)
class Unsent:
    """A message that can't be sent, with the reason.

    With `waits` (seconds) it is tried again for so long before it is parked: no queue takes its `routing_key`, or it is
    behind such a message.
    """

    message: Outgoing
    reason: str
    routing_key: str | None = None
    waits: float | None = None


Parked = dict[int, Unsent]
"""By id: messages that can't be sent."""


class Lease:
    """Tells whether this process certainly holds its relay's name. A process that was frozen must not simply go on."""

    def __init__(self) -> None:
        self._confirmed_at = -math.inf

    def confirm(self, asked: float) -> None:
        """Records that the database confirmed the name. The question was sent at `asked`, by `time.monotonic()`."""
        self._confirmed_at = asked

    @property
    def confirmed_at(self) -> float | None:
        """When the name was confirmed last, by `time.monotonic()`; None if it never was."""
        return self._confirmed_at if math.isfinite(self._confirmed_at) else None

    def is_held(self) -> bool:
        """Returns whether the name was confirmed within half of the time after which another process may take it."""
        return time.monotonic() - self._confirmed_at < LEASE / 2


class Target(ABC):
    """Delivers messages to their destination.

    `name` is shown in `outbox status`. Before it sends anything, a target asks `lease.is_held()`, and waits while it
    isn't. It sets `trouble` to what keeps messages from being sent, in words without secrets, and to None afterwards.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lease = Lease()
        self.trouble = Trouble(_say)

    @property
    def settings(self) -> dict[str, Any]:
        """What stands in the relay's row: a name with messages left does not begin with others."""
        return {"target": self.name}

    @abstractmethod
    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        """Sends messages in the order of their ids; returns those that can't be sent, with the reason.

        Returns when each is confirmed or can't be sent, however long that takes. `stopped_keys` are those with a parked
        message: a target that keeps the order of keys parks their later messages, too. True: it only waits, so they do.
        """

    @abstractmethod
    async def close(self) -> None:
        """Closes the connection. The next `deliver` opens a new one."""


def _say(trouble: str | None) -> None:
    if trouble is None:
        log.info("the target accepts messages again")
    else:
        log.warning("%s; messages wait in the log", printable(trouble))
