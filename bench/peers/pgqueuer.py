"""Runs the job on PgQueuer: status change and next job commit together. Ends are written in batches, later.

So jobs run at least once. Settings: docs/guides/performance-tuning (autovacuum, a large batch, a separate connection
for the manager, a pool for the rest), uvloop as in its own benchmark and command line.
"""

from __future__ import annotations

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from .job import NEXT, STATUS_AFTER, Work, run

BATCH = 100
CONNECTIONS = 20


async def main(work: Work) -> None:
    manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(work.dsn)))
    pool = await asyncpg.create_pool(work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    queries = Queries(AsyncpgDriver(await asyncpg.connect(work.dsn)))
    if work.workflows:
        await queries.install()
        await queries.optimize_autovacuum()
        ids = [str(number).encode() for number in range(work.workflows)]
        await queries.enqueue(["no-op" if work.is_noop else "enrich"] * len(ids), ids, [0] * len(ids))

    @manager.entrypoint("no-op")
    async def no_op(job: Job) -> None:
        with work.call():
            pass

    async def step(job: Job, stage: str) -> None:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = $2",
                STATUS_AFTER[stage],
                int(job.payload),
            )
            if work.writes:
                await connection.execute("INSERT INTO effects VALUES ($1, $2)", int(job.payload), stage)
            if stage in NEXT:
                await Queries(AsyncpgDriver(connection)).enqueue(NEXT[stage], job.payload)

    @manager.entrypoint("enrich")
    async def enrich(job: Job) -> None:
        with work.call():
            await step(job, "enrich")

    @manager.entrypoint("act")
    async def act(job: Job) -> None:
        with work.call():
            await step(job, "act")

    # Without max_concurrent_tasks, as by default, because with it the dequeue counts this worker's jobs and is slower.
    await work.until_done_by(manager.run(batch_size=BATCH))


if __name__ == "__main__":
    run("pgqueuer", main, uvloop.run)
