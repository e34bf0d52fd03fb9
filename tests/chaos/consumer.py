"""Runs the consumer: it writes one row of the world for each message, in the transaction of the inbox."""

from __future__ import annotations

import asyncio
import logging

from outbox import Delivery, consume

from .start import become

QUEUE, EXCHANGE = "chaos_consumer", "chaos_behind"


async def record(delivery: Delivery) -> None:
    await delivery.connection.execute("INSERT INTO world.consumed (message_id) VALUES (%s)", (delivery.message_id,))


if __name__ == "__main__":
    become()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    asyncio.run(consume(QUEUE, record, exchange=EXCHANGE, topics=["#"], concurrency=16, grace=3))
