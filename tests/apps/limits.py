"""Limited stages for workers that are processes of their own; each attempt leaves a line when it begins and when it ends.

A line has the machine's monotonic time, and the start time that the database gave the attempt, where the stage has a rate.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from outbox import Backoff, Pipeline, Run

LIMITS: dict[str, dict[str, Any]] = {
    "crowded": {"concurrency": 5},
    "each": {"concurrency": 2, "partition": lambda d: d["customer"], "total_concurrency": 6},
    "paced": {"rate": "20/second"},
    "paced each": {"rate": "5/second", "partition": "customer", "total_rate": "12/second"},
}
LASTS = float(os.environ.get("LASTS", "0.05"))


def _note(what: str, run: Run[dict[str, Any]]) -> None:
    words = time.monotonic(), os.getpid(), what, run.entity_id, run.data["customer"], run._job.start_time
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


async def work(run: Run[dict[str, Any]]) -> None:
    _note("begins", run)
    try:
        await asyncio.sleep(LASTS)
    finally:
        _note("ends", run)


def pipeline(name: str) -> Pipeline[dict[str, Any]]:
    made: Pipeline[dict[str, Any]] = Pipeline(name, initial="NEW", final={"DONE"})
    made.stage("work", on="NEW", to="DONE", retry=Backoff(first=0.01, attempts=20), **LIMITS[name])(work)
    return made


crowded, each, paced, paced_each = map(pipeline, LIMITS)
