"""RabbitMQ and Postgres by hand: the status change is committed, then the next message published, then this one acked.

Two systems, so nothing makes these three one: a crash in between repeats the handler. Settings: a durable queue a
stage, persistent messages, publisher confirms, a prefetch (RabbitMQ's guides to confirms and reliability), messages
handled concurrently, a transaction each.
"""

from __future__ import annotations

import asyncio
import os

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from .job import NEXT, STATUS_AFTER, Work, run

PREFETCH = 100
CONNECTIONS = 10


async def main(work: Work) -> None:
    pool = await asyncpg.create_pool(work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    broker = await aio_pika.connect(os.environ["OUTBOX_AMQP_URL"])
    channel = await broker.channel(publisher_confirms=True)
    await channel.set_qos(PREFETCH)
    queues = {name: await channel.declare_queue(name, durable=True) for name in ("no-op", *STATUS_AFTER)}

    async def publish(workflow: int, stage: str) -> None:
        message = aio_pika.Message(str(workflow).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=stage)

    async def handle(message: AbstractIncomingMessage) -> None:
        workflow, stage = int(message.body), str(message.routing_key)
        with work.call():
            if not work.is_noop:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(
                        "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = $2",
                        STATUS_AFTER[stage],
                        workflow,
                    )
                    if work.writes:
                        await connection.execute("INSERT INTO effects VALUES ($1, $2)", workflow, stage)
                if stage in NEXT:
                    await publish(workflow, NEXT[stage])
            await message.ack()

    first = "no-op" if work.is_noop else "enrich"
    for start in range(0, work.workflows, 1000):
        numbers = range(start, min(start + 1000, work.workflows))
        await asyncio.gather(*(publish(number, first) for number in numbers))
    for queue in queues.values():
        await queue.consume(handle)
    await work.until_done()
    await broker.close()


if __name__ == "__main__":
    run("aio-pika", main)
