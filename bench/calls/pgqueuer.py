"""Runs the job on PgQueuer: status change and next job commit together. A refusal is RetryRequested(delay=).

Settings as in bench/peers/pgqueuer.py. There is no limit of concurrent tasks, as by default.
"""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.errors import RetryRequested
from pgqueuer.models import Job

from ..peers.job import NEXT, STATUS_AFTER
from .work import CONNECTIONS, PAUSE, Busy, Work, run

BATCH = 100


async def main(work: Work) -> None:
    manager = PgQueuer(AsyncpgDriver(await asyncpg.connect(work.dsn)))
    pool = await asyncpg.create_pool(work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
    queries = Queries(AsyncpgDriver(await asyncpg.connect(work.dsn)))
    await queries.install()
    await queries.optimize_autovacuum()
    ids = [str(number).encode() for number in range(work.workflows)]
    await queries.enqueue(["enrich"] * len(ids), ids, [0] * len(ids))

    async def step(job: Job, stage: str) -> None:
        workflow = int(job.payload)
        try:
            await work.ask(workflow, stage)
        except Busy as error:
            raise RetryRequested(timedelta(seconds=PAUSE)) from error
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "UPDATE workflows SET status = $1, steps = steps + 1 WHERE id = $2", STATUS_AFTER[stage], workflow
            )
            if stage in NEXT:
                await Queries(AsyncpgDriver(connection)).enqueue(NEXT[stage], job.payload)
        if stage not in NEXT:
            work.end(workflow)

    @manager.entrypoint("enrich")
    async def enrich(job: Job) -> None:
        await step(job, "enrich")

    @manager.entrypoint("act")
    async def act(job: Job) -> None:
        await step(job, "act")

    await work.until_done_by(manager.run(batch_size=BATCH))


if __name__ == "__main__":
    run("pgqueuer", main, uvloop.run)
