"""Runs the job on DBOS: a workflow of two transactional steps. A step's checkpoint commits with its status change.

So the next job is the next step of the workflow, without a second queue. Settings: workflows in threads (faster here
than async ones) on a queue with a worker concurrency, a short polling interval, a datasource whose transactions are
READ COMMITTED as in all other peers here, larger pools, logs of warnings only.
"""

from __future__ import annotations

import os

from dbos import DBOS, DBOSClient, EnqueueOptions, SQLAlchemyDatasource
from sqlalchemy import create_engine, text

from .job import STATUS_AFTER, Work, run

CONCURRENCY = 100
CONNECTIONS = 20
MOVE = text("UPDATE workflows SET status = :status, steps = steps + 1 WHERE id = :id")
WRITE = text("INSERT INTO effects VALUES (:id, :stage)")


async def main(work: Work) -> None:
    url = work.dsn.replace("postgresql:", "postgresql+psycopg:")
    pool = {"pool_size": CONNECTIONS, "max_overflow": 0}
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "sys_db_pool_size": CONNECTIONS,
            "log_level": "WARNING",
            "run_admin_server": False,
            "executor_id": f"worker-{os.getpid()}",  # two workers of the same name would run each other's workflows
        }
    )
    datasource = SQLAlchemyDatasource.create(url, engine_kwargs=pool)

    @datasource.transaction(isolation_level="READ COMMITTED")
    def step(workflow: int, stage: str) -> None:
        session = datasource.sql_session()
        session.execute(MOVE, {"status": STATUS_AFTER[stage], "id": workflow})
        if work.writes:
            session.execute(WRITE, {"id": workflow, "stage": stage})

    @DBOS.workflow(name="no-op")
    def no_op(workflow: int) -> None:
        with work.call():
            pass

    @DBOS.workflow(name="pipeline")
    def pipeline(workflow: int) -> None:
        for stage in STATUS_AFTER:
            with work.call():
                step(workflow, stage)

    DBOS.launch()
    client = DBOSClient(system_database_url=url, application_name="bench")
    first: EnqueueOptions = {"workflow_name": "no-op" if work.is_noop else "pipeline", "queue_name": "bench"}
    with create_engine(url).begin() as connection:
        for number in range(work.workflows):
            client.enqueue_in_transaction(connection, first, number)
    await DBOS.register_queue_async("bench", worker_concurrency=CONCURRENCY, polling_interval_sec=0.05)
    await work.until_done()
    DBOS.destroy()


if __name__ == "__main__":
    run("dbos", main)
