"""Parents of a hundred children each, for workers that are processes of their own."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from outbox import Pipeline, Run, WaitForChildren

tasks: Pipeline[dict[str, Any]] = Pipeline("tasks", initial="NEW", final={"ENDED"})
parents: Pipeline[dict[str, Any]] = Pipeline("parents", initial="NEW", final={"DONE"})
parents.allow("WAITING", to="MERGED")


@parents.stage("split", on="NEW", to="WAITING")
async def split(run: Run[dict[str, Any]]) -> WaitForChildren[dict[str, Any]]:
    for n in range(100):
        run.spawn(tasks, f"{run.entity_id}-{n}", {})
    return WaitForChildren(to="MERGED")


@tasks.stage("work", on="NEW", to="ENDED")
async def work(run: Run[dict[str, Any]]) -> None:
    await asyncio.sleep(random.uniform(0, 0.05))


@parents.stage("merge", on="MERGED", to="DONE")
async def merge(run: Run[dict[str, Any]]) -> None:
    pass
