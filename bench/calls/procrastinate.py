"""Runs the job on procrastinate: status change and next job commit together. A refusal is retried by RetryStrategy.

Settings: a concurrency as wide as there are workflows, a pool of 20 connections for the worker and another one for the
handlers, ended jobs deleted. A job that is tried again is found by polling alone: every 0.2 s instead of the default 5.
"""

from __future__ import annotations

from procrastinate import App, PsycopgConnector, RetryStrategy
from psycopg_pool import AsyncConnectionPool

from ..peers.job import NEXT, STATUS_AFTER
from .work import CONNECTIONS, PAUSE, TRIES, Busy, Work, run


async def main(work: Work) -> None:
    app = App(connector=PsycopgConnector(conninfo=work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS))
    retry = RetryStrategy(max_attempts=TRIES, wait=round(PAUSE), retry_exceptions=[Busy])

    async def step(workflow: int, stage: str) -> None:
        await work.ask(workflow, stage)
        async with pool.connection() as connection:
            await connection.execute(
                "UPDATE workflows SET status = %s, steps = steps + 1 WHERE id = %s", (STATUS_AFTER[stage], workflow)
            )
            if stage in NEXT:
                await act.configure(connection=connection).defer_async(workflow=workflow)
        if stage not in NEXT:
            work.end(workflow)

    @app.task(retry=retry)
    async def enrich(workflow: int) -> None:
        await step(workflow, "enrich")

    @app.task(retry=retry)
    async def act(workflow: int) -> None:
        await step(workflow, "act")

    pool = AsyncConnectionPool(
        work.dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False, max_waiting=0, timeout=300
    )
    async with app.open_async(), pool:
        await app.schema_manager.apply_schema_async()
        await enrich.batch_defer_async(*({"workflow": number} for number in range(work.workflows)))
        worker = app.run_worker_async(
            concurrency=work.workflows, delete_jobs="always", install_signal_handlers=False,
            fetch_job_polling_interval=0.2,
        )  # fmt: skip
        await work.until_done_by(worker)


if __name__ == "__main__":
    run("procrastinate", main)
