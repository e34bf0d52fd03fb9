"""What could not be sent: parked for a person, or waiting beside the log for a queue that takes it.

Neither holds up the log: the cursor moves past both. A message that no queue takes waits, since a consumer may be about
to bind its queue; the first one of each routing key is tried every second, and all others follow it. Where the log has
messages of that routing key, the first one of each part is tried anyway: then nothing is tried beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..database import statements
from ..database.statements import array, text_array
from ..texts import printable
from .log import Log
from .target import Outgoing, Parked, Target, Unsent

SQL = statements.load("parking")
log = logging.getLogger("outbox.relay")

RETRY_EVERY = 1.0
"""Seconds between two looks at what is to be sent again."""

TRIED_FOR = 1.0
"""Seconds for which a routing key counts as tried after a message of the log went nowhere by it."""

PAGE = 1_000
"""Messages that are sent again at once, and then others have their turn."""

ROUTES = 200
"""Routing keys that are tried at once: few beside the messages that a relay sends in a second."""

EXPIRED_AT_ONCE = 5_000
"""Messages whose time is over and that are parked by one statement: it must not take seconds."""

SHOWN = 3
"""Routing keys that a line of the log names."""


class Parking:
    """Sends again what is parked or waits, for the relay that holds the log's name. `strict` keeps each key's order."""

    def __init__(self, log: Log, target: Target, strict: bool) -> None:
        self._log, self._target, self._strict = log, target, strict
        self._retry_at = 0.0
        self._may_wait = True  # another process may have left some
        self._after = ("", 0)
        self._tried: dict[str, float] = {}  # routing keys that led nowhere with the log's last part, and when

    async def stopped_keys(self, messages: Sequence[Outgoing]) -> Mapping[str, bool]:
        """Returns, in strict mode, the keys of the messages that have one here, and whether they only wait."""
        keys = {message.key for message in messages if self._strict and message.key is not None}
        return dict(await self._ask("parked_keys", keys=text_array(keys))) if keys else {}

    def note(self, parked: Parked) -> int:
        """Says what was parked with the cursor's last step, in one line or two; returns how many do not wait."""
        waiting = [unsent for unsent in parked.values() if unsent.waits is not None]
        others = [unsent for unsent in parked.values() if unsent.waits is None]
        now = time.monotonic()
        self._tried = {route: at for route, at in self._tried.items() if now - at < TRIED_FOR}
        self._tried |= {unsent.routing_key: now for unsent in parked.values() if unsent.routing_key is not None}
        if waiting:
            self._may_wait = True
            routes = list(dict.fromkeys(unsent.routing_key for unsent in waiting if unsent.routing_key is not None))
            named = ", ".join(repr(printable(route)) for route in routes[:SHOWN]) + ", …" * (len(routes) > SHOWN)
            log.warning("%s messages wait for a queue that takes them (%s)", len(waiting), named or "behind others")
        if others:
            log.warning("%s messages are parked; %s", len(others), _told(others[0]))
        return len(others)

    async def retry(self, *, all_of_it: bool = False) -> tuple[int, int]:
        """Sends what is due again; returns how much of it was sent, and how much is parked now that waited."""
        if time.monotonic() < self._retry_at and not all_of_it:
            return 0, 0
        relayed = expired = 0
        if self._may_wait:
            relayed, whole_round = await self._probe()
            if whole_round:
                expired = await self._expire()
        more = True
        while more:
            rows = await self._ask("parked_to_retry", strict=self._strict, limit=PAGE)
            messages = [Outgoing(*row) for row in rows]
            if messages:
                relayed += await self._send(messages)
            more = all_of_it and bool(messages)
        self._retry_at = 0.0 if len(messages) == PAGE else time.monotonic() + RETRY_EVERY
        return relayed, expired

    async def _probe(self) -> tuple[int, bool]:
        """Tries the first message of each routing key; returns how many were sent, and whether that was all of them."""
        route, id_ = self._after
        rows = await self._ask("parked_probes", strict=self._strict, after=route, after_id=id_, limit=ROUTES)
        whole_round = len(rows) < ROUTES
        self._after = ("", 0) if whole_round else (rows[-1][-1], 2**63 - 1)
        now = time.monotonic()
        due = [Outgoing(*row[:-1]) for row in rows if now - self._tried.get(row[-1], -TRIED_FOR) >= TRIED_FOR]
        return await self._send(due, probing=True) if due else 0, whole_round

    async def _expire(self) -> int:
        """Parks what has waited long enough."""
        rows = await self._ask("parked_expire", limit=EXPIRED_AT_ONCE, again=RETRY_EVERY)
        if expired := int(rows[0][0]):
            log.warning("%s messages that no queue has taken are parked", expired)
        self._may_wait = (await self._ask("parked_waiting"))[0][0]
        return expired

    async def _send(self, messages: Sequence[Outgoing], *, probing: bool = False) -> int:
        failed = await self._target.deliver(messages, {})
        self._may_wait = self._may_wait or bool(failed)
        if probing and len(failed) == len(messages) and all(each.routing_key is not None for each in failed.values()):
            return 0  # as before: what is in the table is true
        sent = [message.id for message in messages if message.id not in failed]
        await self._ask(
            "parked_settle",
            sent=array(sent),
            ids=array(failed),
            reasons=text_array(unsent.reason for unsent in failed.values()),
            routing_keys=text_array(unsent.routing_key for unsent in failed.values()),
            waits=[unsent.waits for unsent in failed.values()],
        )
        if sent or not probing:
            log.info("%s parked messages relayed, %s parked again", len(sent), len(failed))
        return len(sent)

    async def _ask(self, name: str, **params: Any) -> list[tuple[Any, ...]]:
        return await self._log.ask(SQL[name], **params)


def _told(unsent: Unsent) -> str:
    message = unsent.message
    return f"the first one, {message.id} ({printable(message.topic)}): {printable(unsent.reason)}"
