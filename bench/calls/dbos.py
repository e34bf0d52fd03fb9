"""Runs the job on DBOS: a workflow of two requests, which are steps, and two transactional steps.

A refusal is retried by the step's own settings. Settings: async workflows on a queue whose worker concurrency is as
wide as there are workflows, the rest as in bench/peers/dbos.py.
"""

from __future__ import annotations

from dbos import DBOS, AsyncSQLAlchemyDatasource, DBOSClient, EnqueueOptions
from sqlalchemy import create_engine, text

from ..peers.job import STATUS_AFTER
from .work import CONNECTIONS, PAUSE, TRIES, Work, run

MOVE = text("UPDATE workflows SET status = :status, steps = steps + 1 WHERE id = :id")


async def main(work: Work) -> None:
    url = work.dsn.replace("postgresql:", "postgresql+psycopg:")
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "sys_db_pool_size": CONNECTIONS,
            "log_level": "ERROR",
            "run_admin_server": False,
        }
    )
    pool = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": 300}
    datasource = await AsyncSQLAlchemyDatasource.create(url, engine_kwargs=pool)

    @DBOS.step(retries_allowed=True, max_attempts=TRIES, interval_seconds=PAUSE, backoff_rate=1.0)
    async def ask(workflow: int, stage: str) -> None:
        await work.ask(workflow, stage)

    @datasource.transaction(isolation_level="READ COMMITTED")
    async def move(workflow: int, stage: str) -> None:
        await datasource.sql_session().execute(MOVE, {"status": STATUS_AFTER[stage], "id": workflow})

    @DBOS.workflow(name="calls")
    async def calls(workflow: int) -> None:
        for stage in STATUS_AFTER:
            await ask(workflow, stage)
            await move(workflow, stage)
        work.end(workflow)

    DBOS.launch()
    client = DBOSClient(system_database_url=url, application_name="bench")
    options: EnqueueOptions = {"workflow_name": "calls", "queue_name": "bench"}
    with create_engine(url).begin() as connection:
        for number in range(work.workflows):
            client.enqueue_in_transaction(connection, options, number)
    await DBOS.register_queue_async("bench", worker_concurrency=work.workflows, polling_interval_sec=0.05)
    await work.until_done()


if __name__ == "__main__":
    run("dbos", main)
