"""Runs rabbitmq.py's job in batches: one transaction for up to a hundred messages.

One message that fails makes its whole batch fail. A real consumer would then have to try each message alone, which this
one doesn't.
"""

from __future__ import annotations

import asyncio
import os

import asyncpg

from . import amqp
from .job import NEXT, STATUS_AFTER, Work, run

BATCH = 100
PREFETCH = 2 * BATCH


async def main(work: Work) -> None:
    pool = await asyncpg.create_pool(work.dsn)
    connection = await amqp.connect(os.environ["OUTBOX_AMQP_URL"])
    stages = ("no-op",) if work.is_noop else tuple(STATUS_AFTER)
    channels = {stage: await amqp.Channel.open(connection, PREFETCH) for stage in stages}
    first = channels[stages[0]]
    for stage in stages:
        await first.declare(stage)
    await asyncio.gather(*(first.publish(stages[0], str(number).encode()) for number in range(work.workflows)))

    async def consume(stage: str, channel: amqp.Channel) -> None:
        """Takes what has arrived, at most a batch. Commits it, publishes the next messages, acknowledges these."""
        channel.consume(stage)
        while True:
            messages = [await channel.arrived.get()]
            while len(messages) < BATCH and not channel.arrived.empty():
                messages.append(channel.arrived.get_nowait())
            with work.call(len(messages)):
                if not work.is_noop:
                    await change([int(body) for _, _, body in messages], stage)
                if stage in NEXT:
                    await asyncio.gather(*(channel.publish(NEXT[stage], body) for _, _, body in messages))
                channel.ack(messages[-1][0], multiple=True)

    async def change(workflows: list[int], stage: str) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = ANY($2)", STATUS_AFTER[stage], workflows
            )
            if work.writes:
                rows = [(workflow, stage) for workflow in workflows]
                await connection.executemany("INSERT INTO effects VALUES ($1, $2)", rows)

    async def consume_all() -> None:
        async with asyncio.TaskGroup() as consumers:
            for stage, channel in channels.items():
                consumers.create_task(consume(stage, channel))

    await work.until_done_by(consume_all())


if __name__ == "__main__":
    run("pika", main)
