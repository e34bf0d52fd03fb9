"""Runs a worker that notes how long each of its claims takes, and how many steps each commit makes.

`python -m bench.kit.claims DSN FILE` runs until SIGTERM, and writes the notes (notes.py) into the file.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from outbox.commands import logs
from outbox.database import statements

from .notes import Notes
from .watched import work

CLAIM = statements.load("claim")["jobs_claim"]
FINISH = statements.load("commit")["jobs_finish_if_held"]


def note(notes: Notes, statement: bytes, rows: list[tuple[Any, ...]], seconds: float) -> None:
    if statement is CLAIM:
        notes.claims.append((time.time(), seconds * 1000, len(rows)))
    elif statement is FINISH:
        notes.steps.append((time.time(), len(rows)))


if __name__ == "__main__":
    logs.set_up("text")  # as `outbox worker` does, because logging is part of its cost
    notes = Notes()
    asyncio.run(work(sys.argv[1], lambda *answer: note(notes, *answer)))
    notes.write(Path(sys.argv[2]))
