"""Defines the same job for Outbox: two stages that do nothing, and two that write in the step's transaction.

`effects` is the application's table, with one row per step. In batches, one statement writes up to a hundred rows.
"""

from __future__ import annotations

from typing import Any

from outbox import Pipeline, Run

Data = dict[str, Any]
Steps = Pipeline[Data]

EFFECT = "INSERT INTO effects VALUES (%s, %s)"
EFFECTS = "INSERT INTO effects SELECT unnest(%s::bigint[]), %s"

steps: Steps = Pipeline("steps", initial="RECEIVED", final={"COMPLETED"})
writes: Steps = Pipeline("writes", initial="RECEIVED", final={"COMPLETED"})
shares: Steps = Pipeline("shares", initial="RECEIVED", final={"COMPLETED"})
batches: Steps = Pipeline("batches", initial="RECEIVED", final={"COMPLETED"})


@steps.stage("enrich", on="RECEIVED", to="ENRICHED")
async def enrich(run: Run[Data]) -> None: ...


@steps.stage("act", on="ENRICHED", to="COMPLETED")
async def act(run: Run[Data]) -> None: ...


@writes.stage("enrich", on="RECEIVED", to="ENRICHED", transaction=True)
async def write_enrich(run: Run[Data]) -> None:
    await run.connection.execute(EFFECT, (int(run.entity_id), run.stage))


@writes.stage("act", on="ENRICHED", to="COMPLETED", transaction=True)
async def write_act(run: Run[Data]) -> None:
    await run.connection.execute(EFFECT, (int(run.entity_id), run.stage))


shares.stage("enrich", on="RECEIVED", to="ENRICHED", transaction=True, share=50)(write_enrich)
shares.stage("act", on="ENRICHED", to="COMPLETED", transaction=True, share=50)(write_act)


@batches.stage("enrich", on="RECEIVED", to="ENRICHED", transaction=True, batch=100)
async def batch_enrich(runs: list[Run[Data]]) -> None:
    await runs[0].connection.execute(EFFECTS, ([int(run.entity_id) for run in runs], "enrich"))


@batches.stage("act", on="ENRICHED", to="COMPLETED", transaction=True, batch=100)
async def batch_act(runs: list[Run[Data]]) -> None:
    await runs[0].connection.execute(EFFECTS, ([int(run.entity_id) for run in runs], "act"))
