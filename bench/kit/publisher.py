"""Measures the client's own ceiling: pika alone publishes what a relay would, with the same confirms and no database.

`python -m bench.kit.publisher URL MESSAGES` prints the seconds from its first message to the last confirm, and its CPU
seconds.
"""

from __future__ import annotations

import sys
import time
from itertools import takewhile
from typing import Any
from uuid import uuid4

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from outbox.messages.rabbitmq.batch import UNCONFIRMED

TOPIC = "posts.completed"
BODY = b'{"entity_id": "post_1234567", "content": "Three times faster, thank you! #postgres", "sentiment": 0.5}'
SESSION = str(uuid4())[:23]
HEADERS = {
    "cloudEvents_specversion": "1.0",
    "cloudEvents_id": "",
    "cloudEvents_source": "/outbox",
    "cloudEvents_type": TOPIC,
    "cloudEvents_time": "2026-01-01T00:00:00.000000+00:00",
    "cloudEvents_sequence": f"{0:020}",
    "cloudEvents_subject": "post_1234567",
}


class Publisher:
    """Publishes messages, always with as many unconfirmed ones as the relay has, and does nothing else."""

    def __init__(self, url: str, messages: int) -> None:
        self._left = self._unsent = messages
        self._tag = 0
        self._unconfirmed: dict[int, None] = {}
        self._connection = AsyncioConnection(pika.URLParameters(url), on_open_callback=self._opened)

    def run(self) -> tuple[float, float]:
        self._connection.ioloop.run_forever()
        return time.monotonic() - self._started, time.process_time() - self._busy

    def _opened(self, connection: Any) -> None:
        self._channel = connection.channel(on_open_callback=self._confirm)

    def _confirm(self, channel: Any) -> None:
        channel.confirm_delivery(self._confirmed, callback=self._start)

    def _start(self, _: Any) -> None:
        self._started, self._busy = time.monotonic(), time.process_time()
        self._pump()

    def _pump(self) -> None:
        while self._unsent and len(self._unconfirmed) < UNCONFIRMED:
            self._unsent -= 1
            self._tag += 1
            message_id = f"{SESSION}-{self._tag:012}"
            properties = pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                message_id=f"{message_id}/{self._tag}",
                headers={**HEADERS, "cloudEvents_id": message_id},
            )
            self._channel.basic_publish("bench", TOPIC, BODY, properties, mandatory=True)
            self._unconfirmed[self._tag] = None

    def _confirmed(self, frame: Any) -> None:
        last = frame.method.delivery_tag
        tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed)) if frame.method.multiple else [last]
        for tag in tags:
            del self._unconfirmed[tag]
        self._left -= len(tags)
        self._pump()
        if not self._left:
            self._connection.ioloop.stop()


if __name__ == "__main__":
    print(*Publisher(sys.argv[1], int(sys.argv[2])).run())
