"""Finds out whether an exchange routes by the routing key alone.

If so, what it can't route once it can't route for the next message with the same routing key either: one message is
tried for all of them. A headers exchange looks at each message.
"""

from __future__ import annotations

import re
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from . import connection

BY_ROUTING_KEY = {"topic", "direct", "fanout"}
"""Types of exchange that look at nothing but the routing key, as the default exchange does."""

_ASKED = "topic"
"""The type that is asked for: the most usual one, as another one costs the broker a line in its log."""

_OTHER = re.compile(r"inequivalent arg '(\w+)' .* current is '?([\w-]+)'?")
"""What RabbitMQ says of an exchange that is there and is otherwise. The type is compared first."""


async def routes_by_key(opened: Any, exchange: str) -> bool:
    """Asks a broker, on a channel of its own, about an exchange that is there. Returns False if it can't be told.

    AMQP has no question for the type: an exchange is declared again, which changes nothing, and is refused if it is of
    another one. The user may lack the right to declare.
    """
    channel = await connection.open_channel(opened, lambda *_: None)
    try:
        await connection.ask(channel, channel.exchange_declare, exchange, exchange_type=_ASKED, durable=True)
    except ChannelClosedByBroker as error:
        found = _OTHER.search(error.reply_text)
        return found is not None and (found[1] != "type" or found[2] in BY_ROUTING_KEY)
    channel.close()
    return True
