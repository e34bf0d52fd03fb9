"""Takes the messages of a queue, each to be acknowledged, and reconnects when the broker is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosedByBroker

from ...process.service import Trouble
from ..delivery import Arrival
from . import connection
from .brokers import Brokers

_NOT_FOUND = 404
"""AMQP's reply code for an exchange or a queue that doesn't exist."""

QUEUE = {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}
"""How a queue is made that isn't there. What a quorum queue has confirmed, a majority of the cluster's nodes has; a
classic queue goes with its node. From RabbitMQ 4.0 on, a quorum queue drops a message after 20 deliveries, and a lost
connection counts as one: without a limit of our own, messages would be dropped that no handler has seen. RabbitMQ 3
takes no -1 for "none".
"""

PAUSE_WITHIN = 2.0
"""Seconds in which a broker may confirm that it delivers no more. Later deliveries are not handled."""


class Subscription:
    """Calls `take` with each message of a queue. At most `prefetch` of them are unacknowledged.

    With `topics`, the queue and the `exchange` are made if they aren't there, and bound. A queue that is there stays as
    it is, of whatever type. `trouble` is set to what is wrong, in words without secrets, and to None when messages come
    again.
    """

    def __init__(
        self,
        urls: str,
        queue: str,
        *,
        prefetch: int,
        take: Callable[[Arrival], None],
        trouble: Trouble,
        exchange: str = "",
        topics: Sequence[str] = (),
    ) -> None:
        self._brokers = Brokers(urls)
        self._queue, self._prefetch = queue, prefetch
        self._exchange, self._topics = exchange, topics
        self._take, self._trouble = take, trouble
        self._connection: AsyncioConnection | None = None
        self._channel: Any = None
        self._tag = ""
        self._lost: asyncio.Future[str] | None = None

    async def run(self) -> None:
        """Takes messages until it is cancelled."""
        loop = asyncio.get_running_loop()
        delays = connection.delays()
        while True:
            self._lost = loop.create_future()
            opened = loop.time()
            try:
                await asyncio.wait_for(self._open(), connection.OPEN_WITHIN)
                self._brokers.succeeded()
                self._trouble.set(None)
                why: str | None = self._brokers.named(await self._lost)
            except Exception as error:
                why = self._brokers.failed(connection.reason(error))
            await self.close()
            if why is None:
                continue  # others have not been tried yet
            self._trouble.set(why)
            if loop.time() - opened > connection.LONGEST_WAIT:
                delays.reset()
            await asyncio.sleep(delays.next())

    async def pause(self) -> None:
        """Takes no more messages. Those already taken can still be acknowledged."""
        if self._channel is not None and self._channel.is_open:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(
                    connection.ask(self._channel, self._channel.basic_cancel, self._tag), PAUSE_WITHIN
                )

    async def close(self) -> None:
        """Closes the connection. Unacknowledged messages are delivered again, here or elsewhere."""
        last, self._connection, self._channel = self._connection, None, None
        await connection.close(last)

    async def _open(self) -> None:
        self._connection = await self._brokers.open(lambda opened: opened.add_on_close_callback(self._closed))
        if self._topics:
            await self._make("exchange_declare", self._exchange, exchange_type="topic")
            await self._make("queue_declare", self._queue, arguments=QUEUE)
        self._channel = channel = await connection.open_channel(self._connection, self._closed)
        for topic in self._topics:
            await connection.ask(channel, channel.queue_bind, self._queue, self._exchange, topic)
        await connection.ask(channel, channel.basic_qos, prefetch_count=self._prefetch)
        channel.add_on_cancel_callback(lambda _: self._closed(None, OSError(f"queue {self._queue!r} was deleted")))
        self._tag = channel.basic_consume(self._queue, self._arrived)

    async def _make(self, method: str, name: str, **options: Any) -> None:
        """Creates a durable exchange or queue unless it exists. Declaring one with other options would be an error."""
        assert self._connection is not None
        channel = await connection.open_channel(self._connection, lambda *_: None)
        try:
            await connection.ask(channel, getattr(channel, method), name, passive=True)
        except ChannelClosedByBroker as error:
            if error.reply_code != _NOT_FOUND:
                raise
            channel = await connection.open_channel(self._connection, lambda *_: None)
            await connection.ask(channel, getattr(channel, method), name, durable=True, **options)
        channel.close()

    def _arrived(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._take(
            Arrival(
                method.routing_key,
                body,
                properties.headers or {},
                properties.message_id,
                method.redelivered,
                channel,
                method.delivery_tag,
            )
        )

    def _closed(self, _: Any, error: Any) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(connection.reason(error))
