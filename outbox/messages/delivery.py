"""A delivery: as it came from a queue, and as a handler is given it. No AMQP here, and no database."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from .. import texts
from ..client.inbox import parse_id
from ..errors import InvalidInput, Unreadable

_DEEPEST = 20


@dataclass(slots=True, eq=False)
class Arrival:
    """What came from a queue. `acknowledge` tells the broker that it is done with; `is_ours` whether it still waits
    for that. `parked` is the row that it came from instead, when a person wants it to be tried again.
    """

    topic: str
    body: bytes
    headers: Mapping[str, Any]
    wire_id: str | None = None
    redelivered: bool = False
    channel: Any = None
    tag: int = 0
    parked: int | None = None

    @property
    def is_ours(self) -> bool:
        return self.parked is not None or bool(self.channel.is_open)

    @property
    def stated_id(self) -> object:
        """The id as the headers say it: the same in every delivery, which AMQP's own message_id need not be."""
        return self._header("id") or self.wire_id

    @property
    def key(self) -> str | None:
        key = self._header("subject")
        return key if isinstance(key, str) else None

    @property
    def digest(self) -> bytes:
        """What tells the content of this message from others."""
        try:
            return parse_id(self.stated_id).bytes
        except InvalidInput:
            content = (self.topic.encode("utf-8", "replace"), self.body, storable(self.headers).encode())
            return hashlib.sha256(b"\0".join(content)).digest()

    def acknowledge(self) -> None:
        """Tell the broker, if the channel that it came on is still there; if not, it comes again."""
        if self.parked is None and self.channel.is_open:
            self.channel.basic_ack(self.tag)

    def read(self) -> Delivery:
        """Return what a handler is given, or raise Unreadable."""
        try:
            message_id = parse_id(self.stated_id)
        except InvalidInput as error:
            raise Unreadable(str(error)) from None
        try:
            payload = json.loads(self.body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"the body is no JSON: {texts.clean(str(error), 300)}") from None
        return Delivery(message_id, self.topic, self.key, payload, dict(self.headers))

    def _header(self, name: str) -> Any:
        # CloudEvents' two spellings: `_` is the one that brokers and clients of AMQP 0-9-1 can all filter by.
        return self.headers.get(f"cloudEvents_{name}") or self.headers.get(f"cloudEvents:{name}")


@dataclass(slots=True)
class Delivery:
    """What a handler of `consume` is given: one message.

    `message_id` is the same however often it is delivered; `key` is what the sender orders by, such as an entity's id.
    `payload` is the JSON value; `headers` are all that came along. `attempt` counts from 1. What is written through
    `connection` (a psycopg connection, sync or async as the handler) commits with the record that the message was
    handled, or not at all.
    """

    message_id: UUID
    topic: str
    key: str | None
    payload: Any
    headers: dict[str, Any]
    attempt: int = 1
    connection: Any = field(default=None, repr=False)


def storable(headers: Mapping[str, Any]) -> str:
    """Return whatever AMQP's headers hold as JSON text that Postgres stores. Never raises."""
    return json.dumps(_plain(headers, 0), allow_nan=False)


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {texts.clean(str(name)): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return [_plain(item, depth + 1) for item in value]
    return texts.clean(str(value))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
