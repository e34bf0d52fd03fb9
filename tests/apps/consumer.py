"""The consumer that the fault tests run as a process: one row for each message, in its transaction, no constraint on it.

A payload tells what it does: {"do": "wait"} waits for the gate inside its transaction, {"do": "exit"} kills the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import psycopg

from outbox import Backoff, Delivery, consume
from outbox.database import killpoints


async def handle(delivery: Delivery) -> None:
    payload: dict[str, Any] = delivery.payload
    if payload.get("do") == "exit":
        os._exit(9)
    conn = delivery.connection
    await conn.execute("INSERT INTO outbox.witness (n, attempt) VALUES (%s, %s)", (payload["n"], delivery.attempt))
    killpoints.passing("K3")
    if payload.get("do") == "wait":
        async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as other:
            await other.execute("INSERT INTO outbox.begun VALUES (%s)", (payload["n"],))
            while not (await other.execute("SELECT FROM outbox.gate")).rowcount:
                await asyncio.sleep(0.02)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    asyncio.run(
        consume(
            "q",
            handle,
            concurrency=int(os.environ.get("CONCURRENCY", "1")),
            retry=Backoff(first=0.05, factor=1, attempts=int(os.environ.get("ATTEMPTS", "8"))),
            timeout=float(os.environ.get("TIMEOUT", "60")),
            exchange="x",
            topics=["t.#"],
        )
    )
