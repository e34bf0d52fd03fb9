"""An application with a schedule, for workers that are processes of their own."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from outbox import Pipeline, Tick

pipeline: Pipeline[dict[str, Any]] = Pipeline("clock", initial="NEW", final={"DONE"})
pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)


@pipeline.every("*/5 * * * *", missed="catch up", timeout=1.0)
async def look(tick: Tick) -> None:
    """Note the tick; if there is a gate, wait before it."""
    while not await opened(tick.connection):
        await asyncio.sleep(0.05)
    await tick.connection.execute("INSERT INTO outbox.ticks VALUES (%s, %s)", (tick.at, os.getpid()))


async def opened(conn: Any) -> bool:
    (there,) = await (await conn.execute("SELECT to_regclass('outbox.gate') IS NOT NULL")).fetchone()
    if not there:
        return True
    (count,) = await (await conn.execute("SELECT count(*) FROM outbox.gate")).fetchone()
    return bool(count)
