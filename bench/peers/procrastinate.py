"""Runs the job on procrastinate: status change and next job commit together (`connection=`). Jobs end separately.

A job's end is a later statement. Settings: async tasks with a concurrency, and a pool of the same size; jobs deferred
in one batch; finished jobs deleted (`delete_jobs`), which is procrastinate's own remedy for a growing table.
"""

from __future__ import annotations

from procrastinate import App, PsycopgConnector
from psycopg_pool import AsyncConnectionPool

from .job import NEXT, STATUS_AFTER, Work, run

CONCURRENCY = 5


async def main(work: Work) -> None:
    app = App(connector=PsycopgConnector(conninfo=work.dsn, min_size=CONCURRENCY, max_size=CONCURRENCY))

    @app.task
    async def no_op(workflow: int) -> None:
        with work.call():
            pass

    async def step(workflow: int, stage: str) -> None:
        async with pool.connection() as connection:
            await connection.execute(
                "UPDATE workflows SET status = %s, steps = steps + 1 WHERE id = %s", (STATUS_AFTER[stage], workflow)
            )
            if work.writes:
                await connection.execute("INSERT INTO effects VALUES (%s, %s)", (workflow, stage))
            if stage in NEXT:
                await tasks[NEXT[stage]].configure(connection=connection).defer_async(workflow=workflow)

    @app.task
    async def enrich(workflow: int) -> None:
        with work.call():
            await step(workflow, "enrich")

    @app.task
    async def act(workflow: int) -> None:
        with work.call():
            await step(workflow, "act")

    tasks = {"no-op": no_op, "enrich": enrich, "act": act}

    async with app.open_async(), AsyncConnectionPool(work.dsn, min_size=CONCURRENCY, max_size=CONCURRENCY) as pool:
        if work.workflows:
            await app.schema_manager.apply_schema_async()
            first = tasks["no-op" if work.is_noop else "enrich"]
            await first.batch_defer_async(*({"workflow": number} for number in range(work.workflows)))
        worker = app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always", install_signal_handlers=False)
        await work.until_done_by(worker)


if __name__ == "__main__":
    run("procrastinate", main)
