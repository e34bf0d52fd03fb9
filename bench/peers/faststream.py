"""Runs the job on faststream-outbox: status change and next row commit together. Rows end in a batched DELETE, later.

Settings: docs/concepts/performance (a batched terminal flush, because the handlers may run again; its autovacuum
settings), docs/usage/subscriber (workers, batch and intervals of its example for a busy queue, a pool for its
connection budget).
"""

from __future__ import annotations

from faststream_outbox import OutboxBroker, make_outbox_table, outbox_autovacuum_ddl
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from .job import NEXT, STATUS_AFTER, Work, run

WORKERS = 8
BATCH = 100
MOVE = text("UPDATE workflows SET status = :status, steps = steps + 1 WHERE id = :id")
WRITE = text("INSERT INTO effects VALUES (:id, :stage)")


async def main(work: Work) -> None:
    metadata = MetaData()
    table = make_outbox_table(metadata, table_name="outbox")
    engine = create_async_engine(work.dsn.replace("postgresql:", "postgresql+asyncpg:"), pool_size=4 * WORKERS)
    broker = OutboxBroker(engine, outbox_table=table, logger=None)
    options = {
        "max_workers": WORKERS,
        "fetch_batch_size": BATCH,
        "terminal_flush_batch_size": BATCH,
        "min_fetch_interval": 0.1,
        "max_fetch_interval": 1.0,
    }

    async def step(workflow: int, stage: str) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(MOVE, {"status": STATUS_AFTER[stage], "id": workflow})
            if work.writes:
                await session.execute(WRITE, {"id": workflow, "stage": stage})
            if stage in NEXT:
                await broker.publish(workflow, queue=NEXT[stage], session=session)

    if work.is_noop:

        @broker.subscriber("no-op", **options)
        async def no_op(workflow: int) -> None:
            with work.call():
                pass

    else:

        @broker.subscriber("enrich", **options)
        async def enrich(workflow: int) -> None:
            with work.call():
                await step(workflow, "enrich")

        @broker.subscriber("act", **options)
        async def act(workflow: int) -> None:
            with work.call():
                await step(workflow, "act")

    if work.workflows:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(text(outbox_autovacuum_ddl("outbox")))
        async with AsyncSession(engine) as session, session.begin():
            first = "no-op" if work.is_noop else "enrich"
            await broker.publish_batch(*range(work.workflows), queue=first, session=session)

    async with broker:
        await work.until_done()


if __name__ == "__main__":
    run("faststream-outbox", main)
