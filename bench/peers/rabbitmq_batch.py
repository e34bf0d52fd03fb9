"""RabbitMQ and Postgres by hand, in batches: a transaction for up to a hundred messages; else as rabbitmq.py.

One message that fails takes its batch with it: a real consumer would have to try each alone then, which isn't here.
"""

from __future__ import annotations

import asyncio
import os

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from .job import NEXT, STATUS_AFTER, Work, run

BATCH = 100
PREFETCH = 2 * BATCH


async def main(work: Work) -> None:
    pool = await asyncpg.create_pool(work.dsn)
    broker = await aio_pika.connect(os.environ["OUTBOX_AMQP_URL"])

    async def publish(channel: aio_pika.abc.AbstractChannel, workflow: int, stage: str) -> None:
        message = aio_pika.Message(str(workflow).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=stage)

    async def consume(stage: str) -> None:
        """Take what has arrived, a batch at most; commit it, publish the next ones, acknowledge it."""
        channel = await broker.channel(publisher_confirms=True)
        await channel.set_qos(PREFETCH)
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await (await channel.declare_queue(stage, durable=True)).consume(arrived.put)
        while True:
            messages = [await arrived.get()]
            while len(messages) < BATCH and not arrived.empty():
                messages.append(arrived.get_nowait())
            workflows = [int(message.body) for message in messages]
            with work.call(len(messages)):
                if not work.is_noop:
                    await change(workflows, stage)
                if stage in NEXT:
                    await asyncio.gather(*(publish(channel, workflow, NEXT[stage]) for workflow in workflows))
                await messages[-1].ack(multiple=True)

    async def change(workflows: list[int], stage: str) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = ANY($2)", STATUS_AFTER[stage], workflows
            )
            if work.writes:
                rows = [(workflow, stage) for workflow in workflows]
                await connection.executemany("INSERT INTO effects VALUES ($1, $2)", rows)

    stages = ("no-op",) if work.is_noop else tuple(STATUS_AFTER)
    channel = await broker.channel(publisher_confirms=True)
    for stage in stages:
        await channel.declare_queue(stage, durable=True)
    for start in range(0, work.workflows, 1000):
        numbers = range(start, min(start + 1000, work.workflows))
        await asyncio.gather(*(publish(channel, number, stages[0]) for number in numbers))
    await work.until_done_by(asyncio.gather(*(consume(stage) for stage in stages)))
    await broker.close()


if __name__ == "__main__":
    run("aio-pika", main)
