"""Defines the pipeline of bench.recovery: the first attempt at a job holds it until its worker is killed.

Each attempt appends a line to the file `OUTBOX_BENCH_NOTES`: entity, attempt and the machine's monotonic clock.
"""

import asyncio
import os
import time

from outbox import Pipeline, Run

NOTES = "OUTBOX_BENCH_NOTES"

held = Pipeline("held", initial="RECEIVED", final={"COMPLETED"})


@held.stage("hold", on="RECEIVED", to="COMPLETED")
async def hold(run: Run[dict[str, object]]) -> None:
    line = f"{run.entity_id} {run.attempt} {time.monotonic()}\n"
    file = os.open(os.environ[NOTES], os.O_WRONLY | os.O_APPEND)
    os.write(file, line.encode())  # a single write, so the line is whole even if the process is killed next
    os.close(file)
    if run.attempt == 1:
        await asyncio.Event().wait()
