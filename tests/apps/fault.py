"""The application that the fault tests run as real processes.

`first` has an effect outside the engine's transaction (a row on a connection of its own, no constraint on it),
`second` one inside. Entities tell by their names what they do: `slow…` waits for the gate, `poison…` kills the process.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import psycopg
from pydantic import BaseModel

from outbox import Backoff, Pipeline, Run
from outbox.database import killpoints
from outbox.engine import lane

DSN = os.environ["OUTBOX_DSN"]
lane.PREFETCH = float(os.environ.get("PREFETCH", lane.PREFETCH))


class Data(BaseModel):
    seen: int = 0


RETRY = Backoff(first=0.05, factor=2, max=1, attempts=int(os.environ.get("ATTEMPTS", "8")))
app = Pipeline("f", data=Data, initial="NEW", final={"DONE"})


async def gate_is_open(conn: psycopg.AsyncConnection[Any]) -> bool:
    cursor = await conn.execute("SELECT FROM outbox.gate")
    return cursor.rowcount > 0


@app.stage("first", on="NEW", to="MID", retry=RETRY, timeout=120)
async def first(run: Run[Data]) -> Data:
    if run.entity_id.startswith("poison"):
        os._exit(9)
    if run.entity_id.startswith("quick"):
        return Data(seen=1)
    async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as conn:
        killpoints.passing("K2")
        await conn.execute(
            "INSERT INTO outbox.witness (entity, attempt, key) VALUES (%s, %s, %s)",
            (run.entity_id, run.attempt, run.idempotency_key),
        )
        while run.entity_id.startswith("slow") and not await gate_is_open(conn):
            await asyncio.sleep(0.02)
    run.publish("first.done", {"attempt": run.attempt})
    return Data(seen=run.attempt)


BATCH = int(os.environ["BATCH"]) if "BATCH" in os.environ else None


async def second(runs: Run[Data] | list[Run[Data]]) -> None:
    for run in runs if isinstance(runs, list) else [runs]:
        await run.connection.execute(
            "INSERT INTO outbox.ledger (entity, attempt) VALUES (%s, %s)", (run.entity_id, run.attempt)
        )


app.stage("second", on="MID", to="DONE", retry=RETRY, timeout=120, transaction=True, batch=BATCH, concurrency=4)(second)
