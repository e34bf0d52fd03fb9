"""Publishes messages to RabbitMQ: confirms, returns, reconnects.

It has one channel with publisher confirms; batch.py knows what they mean for which message. RabbitMQ also confirms what
it could not route, hence `mandatory`: the return comes before the confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosed, ConnectionClosedByBroker

from ...database import killpoints
from ...texts import clean
from ..target import Outgoing, Parked, Target
from . import connection
from .batch import Batch
from .brokers import Brokers
from .encoding import ENCODING_ERRORS, Encoder
from .exchange import BY_ROUTING_KEY, routes_by_key
from .routes import Routes
from .silence import Silence

_NOT_THE_MESSAGE = {200, 320, 402, 403, 404, 405, 506, 530, 541}
"""AMQP reply codes of a closed channel or connection that say nothing of a message: the exchange is missing, access is
refused, a person closed it, the broker lacks something.
"""

_LEAVE_EVERY = 10.0
"""Seconds between two connections that are left because they refuse all: a channel of RabbitMQ 3.10 may go on doing so
when its quorum queue has a new leader, and a full queue is no reason to connect more often.
"""

_LOOK_EVERY = 0.5
"""Seconds after which `deliver` checks again whether it may send: nothing tells it that the lease is held again."""


class Publisher(Target):
    """Delivers messages to an exchange. `deliver` returns when the broker has answered for each.

    `declare` is the type of exchange to make if there is none. `routing_key` is a template of {topic} and {key}.
    `strict`: at most one unconfirmed message of a key, so that its order holds through refusals and reconnects.
    """

    def __init__(
        self,
        urls: str,
        *,
        source: str,
        exchange: str = "",
        declare: str | None = None,
        routing_key: str = "{topic}",
        strict: bool = False,
    ) -> None:
        super().__init__(f"exchange {exchange or '(default)'}")
        self._brokers = Brokers(urls)
        self._encoder = Encoder(source, routing_key)
        self._exchange, self._declare = exchange, declare
        self._strict = strict
        self._one_for_all = not exchange or declare in BY_ROUTING_KEY
        self._connection: AsyncioConnection | None = None
        self._channel: Any = None
        self._session = ""
        self._tag = 0
        self._blocked: str | None = None
        self._lost: str | None = None
        self._delays = connection.delays()
        self._silence = Silence()
        self._leave_at = 0.0
        self._routes = Routes()
        self._batch = self._nothing = Batch((), {}, strict, self._routes)
        self._changed = asyncio.Event()

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        """Publishes messages in the order of their ids; returns those that could not go out, with the reason.

        Waits for a broker that is away. What it has confirmed is done; what it has not is sent again.
        """
        batch = self._batch = Batch(messages, stopped_keys, self._strict, self._routes)
        try:
            while batch.left:
                if self._channel is None:
                    await self._connect()
                self._pump()
                self._changed.clear()
                if batch.left and self._channel is not None:
                    due = batch.due() - asyncio.get_running_loop().time()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), max(0.001, min(_LOOK_EVERY, due)))
                    await self._leave_if_silent()
            self.trouble.set(self._blocked)
            if batch.refused and not batch.taken:
                await self._leave_refusing()
            return batch.parked
        finally:
            # Cancelled or not, nothing more of it is sent, and a later answer belongs to no message.
            if self._batch is batch:
                self._batch = self._nothing

    async def close(self) -> None:
        """Closes the connection, without waiting for a broker that does not answer."""
        last, self._connection = self._connection, None
        self._channel = self._blocked = None
        self._batch.lost(None)
        await connection.close(last)

    # Sending.

    def _pump(self) -> None:
        """Sends as much as may be under way."""
        if self._channel is not None and not self._channel.is_open:
            self._drop_channel("the channel was closed as it was opened")
        now = asyncio.get_running_loop().time()
        while self._channel is not None and not self._blocked and self.lease.is_held():
            message = self._batch.next(now)
            if message is None:
                return
            self._send(message)

    def _send(self, message: Outgoing) -> None:
        wire_id = f"{message.message_id}/{self._session}.{self._tag + 1}"
        try:
            if self._one_for_all and not self._batch.may_go(message, self._encoder.routing_key(message)):
                return
            frame_max = self._channel.connection.params.frame_max
            routing_key, body, properties = self._encoder.encode(message, wire_id, frame_max)
            self._channel.basic_publish(self._exchange, routing_key, body, properties, mandatory=True)
        except ENCODING_ERRORS as error:
            self._batch.park(message, clean(f"AMQP can't carry it: {self._encoder.problem(message, error)}", 500))
            return
        killpoints.sending("K9")
        self._tag += 1
        self._batch.sent(message, self._tag, wire_id, routing_key)

    # What the broker says.

    def _confirmed(self, channel: Any, frame: Any) -> None:
        if channel is not self._channel:
            return
        method = frame.method
        acked = isinstance(method, pika.spec.Basic.Ack)
        now = asyncio.get_running_loop().time()
        self._batch.confirmed(method.delivery_tag, method.multiple, acked, now)
        self._delays.reset()
        self._silence.end()
        self.trouble.set(self._blocked)
        self._pump()
        if not acked or not self._batch.left:
            self._changed.set()

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        why = f"unroutable: {method.reply_code} {method.reply_text} (routing key {method.routing_key!r})"
        self._batch.returned(str(properties.message_id), why)

    # The connection.

    async def _leave_if_silent(self) -> None:
        """Says that the broker confirms nothing, and at last leaves it for the next one."""
        waiting = self._batch.under_way > 0 and self._channel is not None and not self._blocked
        said = self._silence.said
        self._silence.look(asyncio.get_running_loop().time(), waiting)
        if not waiting:
            return
        if self._silence.said > said:
            self.trouble.set(self._brokers.named(f"no confirm for {self._silence.said:.0f} s"))
        if self._silence.is_too_long():
            await self.close()
            self._lost = self._brokers.named(f"no confirm for {self._silence.seconds:.0f} s, connecting again")

    async def _leave_refusing(self) -> None:
        """Has the next messages go over a new connection, to the next broker."""
        now = asyncio.get_running_loop().time()
        if now >= self._leave_at:
            self._leave_at = now + _LEAVE_EVERY
            await self.close()

    async def _connect(self) -> None:
        """Opens a channel in confirm mode, however long it takes."""
        while self._channel is None:
            if self._lost is not None:
                self.trouble.set(self._lost)
                await asyncio.sleep(self._delays.next())
            self._lost = None
            try:
                await asyncio.wait_for(self._open(), connection.OPEN_WITHIN)
            except Exception as error:
                self._lost = self._brokers.failed(self._lost or connection.reason(error))
                await self.close()
        self._brokers.succeeded()
        if self._blocked:
            self.trouble.set(self._blocked)

    async def _open(self) -> None:
        if self._connection is None:
            await self._brokers.open(self._connected)
        if self._connection is None:
            raise OSError("the connection was lost as it was opened")
        channel = await connection.open_channel(self._connection, self._channel_closed)
        if self._exchange:
            declared = {"exchange_type": self._declare, "durable": True} if self._declare else {"passive": True}
            await connection.ask(channel, channel.exchange_declare, self._exchange, **declared)
            if not self._declare:
                self._one_for_all = await routes_by_key(self._connection, self._exchange)
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
            self.trouble.set(self._blocked)

    def _on_unblocked(self, which: Any, _: Any) -> None:
        if which is self._connection:
            self._blocked = None
            self.trouble.set(None)
            self._changed.set()

    def _connection_closed(self, which: Any, error: Any) -> None:
        # Its channel was closed before, which has dealt with what was under way.
        if which is self._connection:
            self._connection, self._blocked = None, None
            self._lost = self._brokers.named(connection.reason(error))

    def _channel_closed(self, channel: Any, error: Any) -> None:
        if channel is self._channel:
            has_code = isinstance(error, ChannelClosed | ConnectionClosedByBroker)
            blamed = has_code and error.reply_code not in _NOT_THE_MESSAGE
            self._drop_channel(connection.reason(error), connection.reason(error) if blamed else None)

    def _drop_channel(self, why: str, blame: str | None = None) -> None:
        self._channel, self._lost = None, self._brokers.named(why)
        self._batch.lost(blame)
        self._changed.set()
