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

_NOT_FOUND = 404
"""AMQP's reply code for an exchange or a queue that doesn't exist."""

PAUSE_WITHIN = 2.0
"""Seconds in which a broker may confirm that it delivers no more. Later deliveries are not handled."""


class Subscription:
    """Calls `take` with each message of a queue. At most `prefetch` of them are unacknowledged.

    With `topics`, the queue and the `exchange` are created if they don't exist, and bound. `trouble` is set to the
    problem, in words without secrets, and to None when messages arrive again.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        *,
        prefetch: int,
        take: Callable[[Arrival], None],
        trouble: Trouble,
        exchange: str = "",
        topics: Sequence[str] = (),
    ) -> None:
        self._parameters = connection.parameters(url)
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
                self._trouble.set(None)
                why = await self._lost
            except Exception as error:
                why = connection.reason(error)
            await self.close()
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
        self._connection = await connection.open_connection(
            self._parameters, lambda opened: opened.add_on_close_callback(self._closed)
        )
        if self._topics:
            await self._make("exchange_declare", self._exchange, exchange_type="topic")
            await self._make("queue_declare", self._queue)
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
