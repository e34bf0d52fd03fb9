"""Runs the agent in a task of pgtask, by the Pydantic AI harness. A lease of 5 s instead of 30: less to wait for."""

from __future__ import annotations

import asyncio

from pgtask import Client, Task, TaskRegistry, Worker
from pydantic_ai_harness.pgtask import PGTaskDurability

from .agent import END, World, agent, run


async def main(dsn: str, world: World, is_new: bool) -> None:
    support = agent(world, PGTaskDurability(parallel_execution_mode="parallel_ordered_events"))
    tasks = TaskRegistry(queue_name="agents")

    @tasks.task("support")
    async def handle(task: Task, payload: dict[str, str]) -> dict[str, str]:
        result = await support.run("help")
        world.point(END)
        return {"output": result.output}

    client = await Client.connect(dsn)
    if is_new:
        await client.migrate()
    # With the same key, the second process gets the task of the first one.
    one = await client.enqueue(handle.request({}, idempotency_key="one"))
    working = asyncio.ensure_future(Worker(dsn, tasks, lease_duration=5, poll_interval=1).run())
    while (found := await one.inspect()) is None or found.state != "succeeded":
        if working.done():
            working.result()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    run(main)
