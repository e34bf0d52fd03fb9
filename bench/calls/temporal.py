"""Runs the job on Temporal: a workflow of two activities, each of which commits its status change itself.

A refusal is retried by the activity's RetryPolicy. The server is Temporal's own for development, on SQLite in a file.
Settings: as many activities at once as there are workflows; the worker's others are the defaults.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    # Absolute, because workflows are loaded once more, outside of the package.
    from psycopg_pool import AsyncConnectionPool

    from bench.calls.work import CONNECTIONS, PAUSE, TRIES, Work, run
    from bench.peers.job import NEXT, STATUS_AFTER

QUEUE = "bench"
AT_ONCE = 100
"""Workflows that are started at the same time."""


@workflow.defn(name="calls")
class Calls:
    @workflow.run
    async def run(self, number: int) -> None:
        retry = RetryPolicy(initial_interval=timedelta(seconds=PAUSE), backoff_coefficient=1.0, maximum_attempts=TRIES)
        for stage in STATUS_AFTER:
            await workflow.execute_activity(
                "step", args=[number, stage], start_to_close_timeout=timedelta(seconds=60), retry_policy=retry
            )


async def main(work: Work) -> None:
    pool = AsyncConnectionPool(work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, timeout=300)

    @activity.defn(name="step")
    async def step(number: int, stage: str) -> None:
        await work.ask(number, stage)
        async with pool.connection() as connection:
            await connection.execute(
                "UPDATE workflows SET status = %s, steps = steps + 1 WHERE id = %s", (STATUS_AFTER[stage], number)
            )
        if stage not in NEXT:
            work.end(number)

    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"])
    room = asyncio.Semaphore(AT_ONCE)

    async def start(number: int) -> None:
        async with room:
            await client.start_workflow("calls", number, id=f"calls-{number}", task_queue=QUEUE)

    await asyncio.gather(*(start(number) for number in range(work.workflows)))
    worker = Worker(
        client, task_queue=QUEUE, workflows=[Calls], activities=[step], max_concurrent_activities=work.workflows
    )
    async with pool:
        await work.until_done_by(worker.run())


if __name__ == "__main__":
    run("temporalio", main)
