"""The subscription: takes what a queue has, each delivery to be acknowledged, through any loss of the broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosedByBroker

from ..delivery import Arrival
from . import connection

_NOT_FOUND = 404


class Subscription:
    """Hands each arrival of a durable queue to `take`, at most `prefetch` of them unacknowledged.

    With `topics`, queue and `exchange` are made if they aren't there, and bound. `on_trouble` is told what is wrong, in
    words without secrets, and None when it is over.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        *,
        prefetch: int,
        take: Callable[[Arrival], None],
        on_trouble: Callable[[str | None], None],
        exchange: str = "",
        topics: Sequence[str] = (),
    ) -> None:
        self._parameters = connection.parameters(url)
        self._queue, self._prefetch = queue, prefetch
        self._exchange, self._topics = exchange, topics
        self._take, self._on_trouble = take, on_trouble
        self._connection: AsyncioConnection | None = None
        self._channel: Any = None
        self._tag = ""
        self._lost: asyncio.Future[str] | None = None

    async def run(self) -> None:
        """Take what there is, until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            self._lost = loop.create_future()
            opened = loop.time()
            try:
                await asyncio.wait_for(self._open(), 3 * connection.PATIENCE)
                self._on_trouble(None)
                why = await self._lost
            except Exception as error:
                why = connection.reason(error)
            await self.close()
            self._on_trouble(why)
            if loop.time() - opened > connection.LONGEST_WAIT:
                failures = 0
            failures += 1
            await asyncio.sleep(connection.pause(failures))

    async def pause(self) -> None:
        """Take nothing more; what was taken can still be acknowledged."""
        if self._channel is not None and self._channel.is_open:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.ask(self._channel, self._channel.basic_cancel, self._tag), 2)

    async def close(self) -> None:
        """Let go of the queue: what was not acknowledged is delivered again, to whoever is there."""
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
        """Make what isn't there, durable. To declare what is there, with options that others chose, is an error."""
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
