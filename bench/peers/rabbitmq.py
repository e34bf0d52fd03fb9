"""Runs the job on RabbitMQ and Postgres by hand: commits the status change, publishes the next message, acks this one.

These are two systems, so the three steps are not atomic: a crash between them repeats the handler. Settings: a durable
queue per stage, persistent messages, publisher confirms, a prefetch (RabbitMQ's guides to confirms and reliability),
messages handled concurrently, each in its own transaction.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg

from . import amqp
from .job import NEXT, STATUS_AFTER, Work, run

PREFETCH = 100
CONNECTIONS = 10


async def main(work: Work) -> None:
    pool = await asyncpg.create_pool(work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    channel = await amqp.Channel.open(await amqp.connect(os.environ["OUTBOX_AMQP_URL"]), PREFETCH)
    stages = ("no-op",) if work.is_noop else tuple(STATUS_AFTER)
    for stage in stages:
        await channel.declare(stage)
    await asyncio.gather(*(channel.publish(stages[0], str(number).encode()) for number in range(work.workflows)))

    async def handle(tag: int, stage: str, body: bytes) -> None:
        with work.call():
            if not work.is_noop:
                await change(int(body), stage)
            if stage in NEXT:
                await channel.publish(NEXT[stage], body)
            channel.ack(tag)

    async def change(workflow: int, stage: str) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = $2", STATUS_AFTER[stage], workflow
            )
            if work.writes:
                await connection.execute("INSERT INTO effects VALUES ($1, $2)", workflow, stage)

    async def consume() -> None:
        for stage in stages:
            channel.consume(stage)
        async with asyncio.TaskGroup() as handlers:
            while True:
                handlers.create_task(handle(*await channel.arrived.get()))

    await work.until_done_by(consume())


if __name__ == "__main__":
    run("pika", main)
