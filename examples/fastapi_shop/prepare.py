"""Prepares the database: the schema of Outbox, the shop's table, and the pipeline. Run it with each release."""

import asyncio

import outbox

from .database import Base, engine
from .pipeline import orders


async def prepare() -> None:
    """Does all of it in one transaction."""
    async with engine.begin() as conn:
        await outbox.migrate(conn)
        await conn.run_sync(Base.metadata.create_all)
        await outbox.deploy(conn, orders)
    await engine.dispose()


def main() -> None:
    asyncio.run(prepare())


if __name__ == "__main__":
    main()
