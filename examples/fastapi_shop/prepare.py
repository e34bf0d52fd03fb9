"""Prepares the database: the schema of Outbox, the shop's table, and the pipeline. Run it with each release."""

import asyncio

import psycopg

import outbox

from .database import Base, engine
from .pipeline import orders
from .settings import DSN


async def make_tables() -> None:
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    await engine.dispose()


def main() -> None:
    outbox.migrate(DSN)
    asyncio.run(make_tables())
    with psycopg.connect(DSN) as conn:
        outbox.deploy(conn, orders)


if __name__ == "__main__":
    main()
