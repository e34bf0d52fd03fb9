"""Defines a message as it arrives from a queue, and as a handler gets it. Needs neither AMQP nor a database."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from .. import texts
from ..client.inbox import parse_id
from ..definition.lifespan import HasResources
from ..definition.step_transaction import Hook, StepTransaction
from ..errors import InvalidInput, Unreadable

_DEEPEST = 20
"""Levels of nested headers kept as JSON. Deeper ones are kept as text, because Postgres has a limit, too."""


@dataclass(slots=True, eq=False)
class Arrival:
    """A message from a queue, or from the row `parked` when a person wants to retry it.

    `headers` are AMQP's, and `wire_id` is AMQP's message_id. It is acknowledged by `channel` and `tag`.
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
    def can_be_acknowledged(self) -> bool:
        """Whether the channel on which it came is open. If it isn't, the broker delivers the message again."""
        return self.parked is not None or bool(self.channel.is_open)

    @property
    def comes_again(self) -> bool:
        """Whether the message may have been delivered before."""
        return self.redelivered or self.parked is not None

    @property
    def stated_id(self) -> object:
        """The id in the headers, which is the same in every delivery. AMQP's message_id may differ."""
        return self._header("id") or self.wire_id

    @property
    def key(self) -> str | None:
        key = self._header("subject")
        return key if isinstance(key, str) else None

    @property
    def digest(self) -> bytes:
        """Bytes that identify this message: its id, or a hash of its whole content."""
        try:
            return parse_id(self.stated_id).bytes
        except InvalidInput:
            content = (self.topic.encode("utf-8", "replace"), self.body, storable(self.headers).encode())
            return hashlib.sha256(b"\0".join(content)).digest()

    def acknowledge(self) -> None:
        """Acknowledges the message, if it came from a queue and its channel is still open."""
        if self.parked is None and self.channel.is_open:
            self.channel.basic_ack(self.tag)

    def read(self, kind: type[Delivery] | None = None) -> Delivery:
        """Returns the Delivery for the handler, of this kind, or raises Unreadable."""
        try:
            message_id = parse_id(self.stated_id)
        except InvalidInput as error:
            raise Unreadable(str(error)) from None
        try:
            payload = json.loads(self.body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"the body is not JSON: {texts.clean(str(error), 300)}") from None
        return (kind or Delivery)(message_id, self.topic, self.key, payload, dict(self.headers))

    def _header(self, name: str) -> Any:
        # CloudEvents has two spellings. All AMQP 0-9-1 brokers and clients can filter by the one with `_`.
        return self.headers.get(f"cloudEvents_{name}") or self.headers.get(f"cloudEvents:{name}")


@dataclass(slots=True)
class Delivery(HasResources):
    """Carries one message to a handler of `consume`.

    `message_id` is the same in every delivery. `key` is what the sender orders by, such as an entity's id. `payload` is
    the JSON value, and `headers` are all headers of the message. `attempt` counts from 1. `connection` is a psycopg
    connection. What is written through it commits with the record that the message was handled, or not at all. A plain
    function gets a `SyncDelivery`. `resources` is what the consumer's lifespan has made.
    """

    message_id: UUID
    topic: str
    key: str | None
    payload: Any
    headers: dict[str, Any]
    attempt: int = 1
    connection: psycopg.AsyncConnection[TupleRow] = field(default=None, repr=False)  # type: ignore[arg-type]
    _transaction: StepTransaction | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def hooks(self) -> list[Hook]:
        """What is to be called after the COMMIT."""
        return [] if self._transaction is None else self._transaction.hooks

    def begin(self, connection: Any) -> StepTransaction:
        """Gives one attempt its connection."""
        self.connection = connection
        self._transaction = StepTransaction(connection, f"the handler of message {self.message_id}")
        return self._transaction

    def on_commit(self, function: Callable[[], Any]) -> None:
        """Has a function called after the COMMIT that records this message as handled, as `Run.on_commit` does."""
        self._in_transaction().on_commit(function)

    def _in_transaction(self) -> StepTransaction:
        return self._transaction or self.begin(self.connection)


@dataclass(slots=True)
class SyncDelivery(Delivery):
    """A `Delivery` as a plain function gets it: its connection is a sync one."""

    connection: psycopg.Connection[TupleRow] = field(default=None, repr=False)  # type: ignore[assignment, arg-type]


def storable(headers: Mapping[str, Any]) -> str:
    """Returns AMQP headers, whatever they contain, as JSON text that Postgres can store. Never raises."""
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
