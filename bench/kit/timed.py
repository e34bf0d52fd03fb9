"""Runs a worker that notes when handlers begin and commits are answered: in memory, and in a file when it stops.

`python -m bench.kit.timed DSN FILE` writes a JSON object: for each workflow, when its first handler began and when the
COMMIT of its last step was answered, in seconds of the machine's clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from outbox import Run
from outbox.commands import logs
from outbox.database import statements

from .app import Post, posts
from .watched import work

FINISH = statements.load("commit")["jobs_finish_if_held"]


def note_end(ended: dict[str, float], statement: bytes, rows: list[tuple[Any, ...]]) -> None:
    if statement is FINISH:
        now = time.time()
        for (workflow,) in rows:
            ended[workflow] = now  # each step overwrites the one before


def note_starts() -> dict[str, float]:
    """Makes the first stage's handler note when it begins. Returns the notes."""
    started: dict[str, float] = {}
    stage = posts.stages["enrich"]

    async def handler(run: Run[Post]) -> Any:
        started[str(run.workflow_id)] = time.time()
        return await stage.handler(run)

    posts.stages["enrich"] = replace(stage, handler=handler)
    return started


if __name__ == "__main__":
    logs.set_up("text")  # as `outbox worker` does, because logging is part of its cost
    started, ended = note_starts(), dict[str, float]()
    asyncio.run(work(sys.argv[1], lambda statement, rows, _: note_end(ended, statement, rows)))
    Path(sys.argv[2]).write_text(json.dumps({workflow: (started[workflow], ended[workflow]) for workflow in ended}))
