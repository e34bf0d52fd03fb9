"""Writes messages in AMQP: routing key, body, and CloudEvents headers. Raises an error for what AMQP can't carry."""

from __future__ import annotations

import re
import struct
from typing import Any

import pika
from pika.exceptions import ShortStringTooLong, UnsupportedAMQPFieldException

from ...errors import SettingsError
from ..cloudevents import attributes, own_headers
from ..target import Outgoing

ENCODING_ERRORS = (
    ValueError, TypeError, OverflowError, AssertionError, RecursionError, struct.error,
    UnsupportedAMQPFieldException, ShortStringTooLong,
)  # fmt: skip
"""Errors that `encode`, or pika when it publishes, raises for a message that AMQP can't carry."""

_RESERVED = re.compile(r"cloudEvents[_:]", re.IGNORECASE)
"""Headers that only the relay sets: a message's own headers must not forge its id."""

_LONGEST_ROUTING_KEY = 255
"""Most bytes of a routing key: AMQP's short strings hold no more, and pika's error doesn't name the string."""


class Encoder:
    """Encodes messages. `source` is their CloudEvents source; `routing_key` is a template of {topic} and {key}."""

    def __init__(self, source: str, routing_key: str) -> None:
        try:
            routing_key.format(topic="", key="")
        except Exception as error:
            raise SettingsError(
                f"the routing key {routing_key!r} is not a template of {{topic}} and {{key}}: {error}"
            ) from None
        self._source = source
        self._template = None if routing_key == "{topic}" else routing_key

    def encode(self, message: Outgoing, wire_id: str, frame_max: int) -> tuple[str, bytes, pika.BasicProperties]:
        """Returns a message's routing key, body and properties. `wire_id` names this attempt to send it."""
        routing_key = self.routing_key(message)
        if len(routing_key.encode()) > _LONGEST_ROUTING_KEY:
            raise ValueError(f"the routing key has more than {_LONGEST_ROUTING_KEY} bytes: {routing_key[:50]}…")
        properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=wire_id, headers=self._headers(message)
        )
        body = (message.payload or "null").encode()
        # A character takes at most four bytes, so only long headers have to be measured.
        long = len(message.headers or "") + len(message.key or "") + len(message.topic)
        if 5 * long > frame_max and len(pika.frame.Header(1, len(body), properties).marshal()) > frame_max:
            raise ValueError(f"its headers are larger than the {frame_max} bytes that a frame takes")
        return routing_key, body, properties

    def problem(self, message: Outgoing, error: Exception) -> str:
        """Returns why a message could not be encoded or published, and names the header that AMQP can't represent."""
        try:
            headers = self._headers(message)
        except ENCODING_ERRORS:
            headers = {}
        for name, value in headers.items():
            try:
                pika.data.encode_table([], {name: value})
            except ENCODING_ERRORS as unfit:
                why = repr(unfit.args[-1]) if isinstance(unfit, UnsupportedAMQPFieldException) else str(unfit)
                return f"the header {name[:50]!r}: {why}"
        return str(error) or type(error).__name__

    def routing_key(self, message: Outgoing) -> str:
        """Returns the routing key of a message."""
        if self._template is None:
            return message.topic
        return self._template.format(topic=message.topic, key=message.key or "")

    def _headers(self, message: Outgoing) -> dict[str, Any]:
        headers = {name: value for name, value in own_headers(message).items() if not _RESERVED.match(name)}
        return headers | {f"cloudEvents_{name}": value for name, value in attributes(message, self._source).items()}
