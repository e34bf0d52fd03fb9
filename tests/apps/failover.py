"""The application of the failovers: an effect in the handler's transaction, a message, an effect of its consumer.

The effects are rows without any unique constraint, each with the process that had it.
"""

from __future__ import annotations

import asyncio
import logging
import os

from pydantic import BaseModel

from outbox import Backoff, Delivery, Pipeline, Run, consume

EXCHANGE, QUEUE = "failovers", "failovers_consumer"
WORLD = """
    CREATE SCHEMA world AUTHORIZATION outbox_owner;
    SET ROLE outbox_owner;
    CREATE TABLE world.inside (entity text, process int, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE world.consumed (entity text, message_id uuid, process int, at timestamptz DEFAULT clock_timestamp());
    CREATE INDEX ON world.inside (at);
    CREATE INDEX ON world.consumed (at);
    RESET ROLE;
"""


class Data(BaseModel):
    pass


# What a failover interrupts costs attempts: none may run out of them.
RETRY = Backoff(first=0.1, factor=2, max=1, attempts=100)
orders: Pipeline[Data] = Pipeline("orders", data=Data, initial="NEW", final={"DONE"})


@orders.stage("act", on="NEW", to="DONE", transaction=True, retry=RETRY, timeout=10)
async def act(run: Run[Data]) -> None:
    await run.connection.execute(
        "INSERT INTO world.inside (entity, process) VALUES (%s, %s)", (run.entity_id, os.getpid())
    )
    run.publish("done", {"entity": run.entity_id})


async def record(delivery: Delivery) -> None:
    await delivery.connection.execute(
        "INSERT INTO world.consumed (entity, message_id, process) VALUES (%s, %s, %s)",
        (delivery.payload["entity"], delivery.message_id, os.getpid()),
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    asyncio.run(consume(QUEUE, record, exchange=EXCHANGE, topics=["#"], concurrency=16, grace=3))
