"""Wraps pika for asyncio: pika's own connection, confirms that can be awaited, deliveries in a queue.

It uses pika because pika's asynchronous connection costs a fraction per message of what aio-pika costs
(bench/kit/publisher.py).
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

PERSISTENT = pika.BasicProperties(delivery_mode=2)


async def connect(url: str) -> AsyncioConnection:
    opened: asyncio.Future[AsyncioConnection] = asyncio.get_running_loop().create_future()
    AsyncioConnection(
        pika.URLParameters(url),
        on_open_callback=opened.set_result,
        on_open_error_callback=lambda _, error: opened.set_exception(error),
    )
    return await opened


class Channel:
    """One channel with publisher confirms."""

    @classmethod
    async def open(cls, connection: AsyncioConnection, prefetch: int) -> Channel:
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        connection.channel(on_open_callback=opened.set_result)
        return cls(await opened, prefetch)

    def __init__(self, channel: Any, prefetch: int) -> None:
        self._channel = channel
        self._tag = 0
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        self.arrived: asyncio.Queue[tuple[int, str, bytes]] = asyncio.Queue()
        channel.confirm_delivery(self._confirmed)
        channel.basic_qos(prefetch_count=prefetch)

    async def declare(self, queue: str) -> None:
        # Awaited, because pika delays it until earlier calls are answered, but doesn't delay later publishes.
        declared: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._channel.queue_declare(queue, durable=True, callback=declared.set_result)
        await declared

    def consume(self, queue: str) -> None:
        """Puts the deliveries of a queue into `arrived`, as delivery tag, queue and body."""
        self._channel.basic_consume(
            queue,
            lambda _, method, __, body: self.arrived.put_nowait((method.delivery_tag, method.routing_key, body)),
        )

    def publish(self, queue: str, body: bytes) -> asyncio.Future[None]:
        """Publishes a persistent message. The future is done when the broker has confirmed it."""
        self._tag += 1
        self._channel.basic_publish("", queue, body, PERSISTENT)
        self._unconfirmed[self._tag] = confirmed = asyncio.get_running_loop().create_future()
        return confirmed

    def ack(self, tag: int, multiple: bool = False) -> None:
        self._channel.basic_ack(tag, multiple)

    def _confirmed(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed)) if frame.method.multiple else [last]
        for tag in tags:
            confirmed = self._unconfirmed.pop(tag)
            if isinstance(frame.method, pika.spec.Basic.Nack):
                confirmed.set_exception(RuntimeError("the broker refused a message"))
            else:
                confirmed.set_result(None)
