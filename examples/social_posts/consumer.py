"""Runs the demo's consumer, to copy for your own: one row for each message, even if it is delivered several times.

OUTBOX_DSN=… OUTBOX_AMQP_URL=… python -m outbox.demo.consumer
"""

import asyncio
import logging

from outbox import Delivery, consume

QUEUE = EXCHANGE = "outbox_demo"


async def record(delivery: Delivery) -> None:
    """Writes a row. It commits together with the record that the message was handled, or not at all."""
    await delivery.connection.execute(
        "INSERT INTO demo_crm.enriched (entity_id, sentiment) VALUES (%s, %s)",
        (delivery.payload["entity_id"], delivery.payload["sentiment"]),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # outbox.consumer reports problems, each in one line
    asyncio.run(consume(QUEUE, record, exchange=EXCHANGE, topics=["posts.enriched"]))
