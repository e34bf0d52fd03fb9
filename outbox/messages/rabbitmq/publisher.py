"""The publisher: confirms, returns, reconnects.

One channel with publisher confirms; what they mean for which message is batch.py's. RabbitMQ confirms what it could
not route, too, hence `mandatory`: the return comes before the confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import (
    ChannelClosed,
    ConnectionClosedByBroker,
    ShortStringTooLong,
    UnsupportedAMQPFieldException,
)

from ...database import killpoints
from ...errors import SettingsError
from ...texts import clean
from ..log import Outgoing
from . import connection
from .batch import Batch

# Closing a channel or connection with one of these codes says nothing of a message: the exchange is missing, we may
# not, somebody asked for it, the broker lacks something.
_NOT_THE_MESSAGE = {200, 320, 402, 403, 404, 405, 506, 530, 541}


class Publisher:
    """Delivers messages to an exchange. `deliver` returns when the broker has answered for each.

    `routing_key` is a template of {topic} and {key}. `strict`: at most one unconfirmed message of a key, so that order
    holds through refusals and reconnects. `may_send` is asked before anything is sent; `on_trouble` is told what is
    wrong, in words without secrets, and None when it is over.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str,
        exchange: str = "",
        declare: str | None = None,
        routing_key: str = "{topic}",
        strict: bool = False,
        may_send: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        self._parameters = connection.parameters(url)
        try:
            routing_key.format(topic="", key="")
        except Exception as error:
            raise SettingsError(
                f"the routing key {routing_key!r} is no template of {{topic}} and {{key}}: {error}"
            ) from None
        self._source, self._exchange, self._declare = source, exchange, declare
        self._template = None if routing_key == "{topic}" else routing_key
        self._strict, self._may_send, self._on_trouble = strict, may_send, on_trouble
        self._connection: AsyncioConnection | None = None
        self._channel: Any = None
        self._session = ""
        self._tag = 0
        self._blocked: str | None = None
        self._lost: str | None = None
        self._failures = 0
        self._told: str | None = None
        self._batch = Batch((), (), strict)
        self._changed = asyncio.Event()

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: set[str]) -> dict[int, tuple[Outgoing, str]]:
        """Publish messages in the order of their ids; return those that could not go out, with the reason.

        However long the broker is away: what it has confirmed is done, what it has not is sent again. `stopped_keys`
        are those with a parked message: in strict mode, later ones of the key are parked behind it.
        """
        batch = self._batch = Batch(messages, stopped_keys, self._strict)
        try:
            while batch.left:
                if self._channel is None:
                    await self._connect()
                self._pump()
                self._changed.clear()
                if batch.left and self._channel is not None:
                    due = batch.due() - asyncio.get_running_loop().time()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), max(0.001, min(0.5, due)))
            self._trouble(self._blocked)
            return batch.parked
        finally:
            # Cancelled or not, nothing more of it is sent, and an answer that comes later is nobody's.
            if self._batch is batch:
                self._batch = Batch((), (), self._strict)

    async def close(self) -> None:
        """Close the connection, without waiting for a broker that does not answer."""
        last, self._connection = self._connection, None
        self._channel = self._blocked = None
        self._batch.lost(None)
        await connection.close(last)

    # Sending.

    def _pump(self) -> None:
        """Send as much as may be under way."""
        if self._channel is not None and not self._channel.is_open:
            self._drop_channel("the channel was closed as it was opened")
        now = asyncio.get_running_loop().time()
        while self._channel is not None and not self._blocked and self._may_send():
            message = self._batch.next(now)
            if message is None:
                return
            self._send(message)

    def _send(self, message: Outgoing) -> None:
        wire_id = f"{message.message_id}/{self._session}.{self._tag + 1}"
        headers: dict[str, Any] = {}
        try:
            routing_key = self.routing_key(message)
            if len(routing_key.encode()) > 255:
                raise ValueError(f"the routing key has more than 255 bytes: {routing_key[:50]}…")
            headers = self._headers(message)
            properties = pika.BasicProperties(
                content_type="application/json", delivery_mode=2, message_id=wire_id, headers=headers
            )
            body = (message.payload or "null").encode()
            room = self._channel.connection.params.frame_max
            # No character takes more than four bytes: only what is long is measured.
            long = len(message.headers or "") + len(message.key or "") + len(message.topic)
            if 5 * long > room and len(pika.frame.Header(1, len(body), properties).marshal()) > room:
                raise ValueError(f"its headers are larger than the {room} bytes that a frame takes")
            self._channel.basic_publish(self._exchange, routing_key, body, properties, mandatory=True)
        except _ENCODING_ERRORS as error:
            why = _misfit(headers) or str(error) or type(error).__name__
            self._batch.park(message, clean(f"AMQP can't carry it: {why}", 500))
            return
        killpoints.sending("K9")
        self._tag += 1
        self._batch.sent(message, self._tag, wire_id)

    def routing_key(self, message: Outgoing) -> str:
        if self._template is None:
            return message.topic
        return self._template.format(topic=message.topic, key=message.key or "")

    def _headers(self, message: Outgoing) -> dict[str, Any]:
        try:
            headers = json.loads(message.headers) if message.headers else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its headers can't be read: {error}") from None
        if not isinstance(headers, dict):
            raise ValueError("its headers are not an object")
        headers = {name: value for name, value in headers.items() if not _RESERVED.match(name)}
        headers |= {
            "cloudEvents_specversion": "1.0",
            "cloudEvents_id": message.message_id,
            "cloudEvents_source": self._source,
            "cloudEvents_type": message.topic,
            "cloudEvents_time": message.created_at.isoformat(),
            "cloudEvents_sequence": f"{message.id:020}",
        }
        if message.key is not None:
            headers["cloudEvents_subject"] = message.key
        return headers

    # What the broker says.

    def _confirmed(self, channel: Any, frame: Any) -> None:
        if channel is not self._channel:
            return
        method = frame.method
        acked = isinstance(method, pika.spec.Basic.Ack)
        now = asyncio.get_running_loop().time()
        self._batch.confirmed(method.delivery_tag, method.multiple, acked, now)
        self._failures = 0
        self._trouble(self._blocked)
        self._pump()
        if not acked or not self._batch.left:
            self._changed.set()

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        why = f"unroutable: {method.reply_code} {method.reply_text} (routing key {method.routing_key!r})"
        self._batch.returned(str(properties.message_id), why)

    # The connection.

    async def _connect(self) -> None:
        """Return with an open channel in confirm mode, however long it takes."""
        while self._channel is None:
            if self._lost is not None:
                self._trouble(self._lost)
                self._failures += 1
                await asyncio.sleep(connection.pause(self._failures))
            self._lost = None
            try:
                await asyncio.wait_for(self._open(), 3 * connection.PATIENCE)
            except Exception as error:
                self._lost = self._lost or connection.reason(error)
                await self.close()
        if self._blocked:
            self._trouble(self._blocked)

    async def _open(self) -> None:
        if self._connection is None:
            await connection.open_connection(self._parameters, self._connected)
        if self._connection is None:
            raise OSError("the connection was lost as it was opened")
        channel = await connection.open_channel(self._connection, self._channel_closed)
        if self._exchange:
            declared = {"exchange_type": self._declare, "durable": True} if self._declare else {"passive": True}
            await connection.ask(channel, channel.exchange_declare, self._exchange, **declared)
        channel.add_on_return_callback(self._returned)
        confirmed = functools.partial(self._confirmed, channel)
        await connection.ask(channel, channel.confirm_delivery, confirmed)
        self._tag, self._session = 0, uuid4().hex[:12]
        self._channel = channel

    def _connected(self, opened: AsyncioConnection) -> None:
        opened.add_on_close_callback(self._connection_closed)
        opened.add_on_connection_blocked_callback(self._on_blocked)
        opened.add_on_connection_unblocked_callback(self._on_unblocked)
        self._connection = opened

    def _on_blocked(self, which: Any, frame: Any) -> None:
        if which is self._connection:
            self._blocked = f"the broker blocks publishers: {clean(str(frame.method.reason), 200)}"
            self._trouble(self._blocked)

    def _on_unblocked(self, which: Any, _: Any) -> None:
        if which is self._connection:
            self._blocked = None
            self._trouble(None)
            self._changed.set()

    def _connection_closed(self, which: Any, error: Any) -> None:
        # Its channel was told before, and has dealt with what was under way.
        if which is self._connection:
            self._connection, self._blocked, self._lost = None, None, connection.reason(error)

    def _channel_closed(self, channel: Any, error: Any) -> None:
        if channel is self._channel:
            told = isinstance(error, ChannelClosed | ConnectionClosedByBroker)
            blamed = told and error.reply_code not in _NOT_THE_MESSAGE
            self._drop_channel(connection.reason(error), connection.reason(error) if blamed else None)

    def _drop_channel(self, why: str, blame: str | None = None) -> None:
        self._channel, self._lost = None, why
        self._batch.lost(blame)
        self._changed.set()

    def _trouble(self, trouble: str | None) -> None:
        if trouble != self._told:
            self._told = trouble
            self._on_trouble(trouble)


_RESERVED = re.compile(r"cloudEvents[_:]", re.IGNORECASE)
_ENCODING_ERRORS = (
    ValueError, TypeError, OverflowError, AssertionError, RecursionError, struct.error,
    UnsupportedAMQPFieldException, ShortStringTooLong,
)  # fmt: skip


def _misfit(headers: dict[str, Any]) -> str | None:
    """Name the first header that AMQP has no form for, and why."""
    for name, value in headers.items():
        try:
            pika.data.encode_table([], {name: value})
        except _ENCODING_ERRORS as error:
            why = repr(error.args[-1]) if isinstance(error, UnsupportedAMQPFieldException) else str(error)
            return f"the header {name[:50]!r}: {why}"
    return None
