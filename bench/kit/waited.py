"""Runs the worker of timed.py, which notes when handlers begin and end, and computes how long workflows waited."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import psycopg

from . import load
from .database import Server
from .steps import check_books, submitted, wait_until

PARTS = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

WARM_UP = 200
"""Workflows that a worker handles before anything counts. They open its connections and prepare its plans."""

CLOCK_MS = 1.0
"""By how many ms the machine's clock may be corrected during a run."""

IDLE = "SELECT coalesce(bool_and(idle), false) AND NOT EXISTS (SELECT FROM outbox.jobs) FROM outbox.workers"

Notes = dict[str, tuple[float, float]]
"""For each entity: when its first handler began, and when the COMMIT of its last step was answered."""


@dataclass(frozen=True, slots=True)
class Run:
    """For each workflow: the ms to its first handler, the ms to its final status, and how many ms late it was sent."""

    handler: list[float]
    final: list[float]
    late: list[float] = field(default_factory=list)


def whole(workflows: float) -> int:
    """Returns a number of workflows, rounded so that all clients of the load have equally many full transactions.

    Each client has at least one transaction.
    """
    share = load.AT_ONCE * load.CLIENTS
    return max(1, round(workflows / share)) * share


def capacity(postgres: Server, dsn: str, workflows: int) -> float:
    """Returns the workflows/s from the first one sent to the last final status, with all sent as fast as possible."""
    with timed_worker(dsn) as notes:
        begun = time.time()
        load.submit(postgres, dsn, workflows)
        wait_until(dsn, IDLE, 600)
    check(dsn, notes, workflows)
    return workflows / (max(final for _, final in notes.values()) - begun)


def waits(notes: Notes, committed: Mapping[str, float]) -> Run:
    """Returns how long each workflow waited after its COMMIT."""
    pairs = [(at, *notes[entity]) for entity, at in committed.items()]
    return Run([(began - at) * 1000 for at, began, _ in pairs], [(ended - at) * 1000 for at, _, ended in pairs])


def check(dsn: str, notes: Notes, workflows: int) -> None:
    """Raises unless the database is right and the worker has noted every workflow, so that no answer was lost."""
    with psycopg.connect(dsn) as conn:
        (now,) = conn.execute("SELECT clock_timestamp() - interval '1 day'").fetchone() or (None,)
    check_books(dsn, workflows + WARM_UP, now)
    if len(notes) != workflows + WARM_UP:
        raise click.ClickException(f"the worker has noted {len(notes):,} workflows, not {workflows + WARM_UP:,}")


def clock() -> float:
    """Returns how many seconds the machine's clock is ahead of the monotonic one, by the quickest of many readings.

    A slow reading is inaccurate, because the process may have been descheduled between the two halves.
    """
    looks = []
    for _ in range(1_000):
        before, now, after = time.monotonic(), time.time(), time.monotonic()
        looks.append((after - before, now - (before + after) / 2))
    return min(looks)[1]


@contextmanager
def timed_worker(dsn: str, idle: str = IDLE) -> Iterator[Notes]:
    """Runs a worker that is warm and idle when the block begins. Its notes are complete when the block has ended."""
    notes: Notes = {}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "notes.json")
        root = Path(__file__).parents[2]
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.kit.timed", dsn, str(file)],
            cwd=root,
            env=os.environ,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(dsn, idle, 60)
            submitted(dsn, WARM_UP)
            wait_until(dsn, idle, 60)
            before = clock()
            yield notes
            moved = abs(clock() - before) * 1000
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        if moved > CLOCK_MS:
            raise click.ClickException(f"the machine's clock was moved by {moved:.1f} ms in this run: it has no figure")
        noted = json.loads(file.read_text())
        with psycopg.connect(dsn) as conn:
            rows = conn.execute("SELECT id::text, entity_id FROM outbox.workflow_states").fetchall()
        notes.update({entity: tuple(noted[workflow]) for workflow, entity in rows if workflow in noted})
