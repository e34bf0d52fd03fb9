"""A stage of five calls that the world counts; each is made when the ones before were kept. For workers that are killed."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import psycopg

from outbox import Backoff, Pipeline, Run

pipeline: Pipeline[dict[str, Any]] = Pipeline("calls", initial="NEW", final={"DONE"})


async def call(number: int) -> int:
    async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        await world.execute("INSERT INTO outbox.calls VALUES (%s)", (str(number),))
    return number


async def gate() -> bool:
    async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as conn:
        found = await (await conn.execute("SELECT to_regclass('outbox.gate') IS NOT NULL")).fetchone()
    return bool(found and found[0])


@pipeline.stage("work", on="NEW", to="DONE", retry=Backoff(attempts=20))
async def work(run: Run[dict[str, Any]]) -> dict[str, Any]:
    numbers = []
    for number in range(5):
        numbers.append(await run.once(f"call {number}", call, number))
        # Killed here, once an attempt: one call further each time.
        while number >= run.attempt - 1 and not await gate():
            await asyncio.sleep(0.02)
    return {"sum": sum(numbers)}
