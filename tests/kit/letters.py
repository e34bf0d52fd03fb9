"""Puts messages into a queue as a relay would send them, for tests of consumers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import pika

from kit.broker import channel
from outbox.messages.rabbitmq.subscription import QUEUE


def uuid7(age_days: float = 0.0) -> str:
    """Returns an id as the engine makes them, from so many days ago."""
    made = int((time.time() - age_days * 86_400) * 1000)
    number = (made << 80) | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | (7 << 76)
    number = number & ~(0x3 << 62) | (2 << 62)
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def post(
    url: str,
    *messages: tuple[str, Any],
    queue: str = "q",
    topic: str | None = None,
    key: str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> None:
    """Puts each (id, payload) into the queue that a consumer makes, as a persistent message. A payload of bytes is sent as it is.

    With `topic` they go to the exchange x, with the queue bound to it.
    """
    _make(url, queue)
    with channel(url) as opened:
        opened.confirm_delivery()
        if topic is not None:
            opened.exchange_declare("x", "topic", durable=True)
            opened.queue_bind(queue, "x", "#")
        for message_id, payload in messages:
            told = {
                "cloudEvents_id": message_id,
                **({} if key is None else {"cloudEvents_subject": key}),
                **(headers or {}),
            }
            body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            properties = pika.BasicProperties(delivery_mode=2, headers=told)
            opened.basic_publish("" if topic is None else "x", topic or queue, body, properties)


def _make(url: str, queue: str) -> None:
    """Makes a queue as a consumer does. One that is there stays, whatever its type."""
    try:
        with channel(url) as opened:
            opened.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        with channel(url) as opened:
            opened.queue_declare(queue, durable=True, arguments=QUEUE)
