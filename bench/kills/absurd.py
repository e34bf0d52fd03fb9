"""Runs the agent in a task of Absurd, by the Pydantic AI harness. A claim of 5 s instead of 120: less to wait for."""

from __future__ import annotations

import asyncio

import psycopg
from absurd_sdk import AsyncAbsurd, AsyncTaskContext, JsonValue
from absurdctl import BUNDLED_SCHEMA_SQL
from pydantic_ai_harness.absurd import AbsurdDurability

from .agent import END, World, agent, run

QUEUE = "agents"
STATES = "SELECT state FROM absurd.t_agents"


async def main(dsn: str, world: World, is_new: bool) -> None:
    support = agent(world, AbsurdDurability(parallel_execution_mode="parallel_ordered_events"))
    absurd = AsyncAbsurd(dsn, queue_name=QUEUE)

    @absurd.register_task(name="support")
    async def handle(params: JsonValue, ctx: AsyncTaskContext) -> JsonValue:
        result = await support.run("help")
        world.point(END)
        return {"output": result.output}

    if is_new:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(BUNDLED_SCHEMA_SQL.encode())
        await absurd.create_queue()
        await absurd.spawn("support", {})

    working = asyncio.create_task(absurd.start_worker(claim_timeout=5))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching:
        while await (await watching.execute(STATES)).fetchall() != [("completed",)]:
            if working.done():
                working.result()
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    run(main)
