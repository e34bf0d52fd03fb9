"""How long after COMMIT a workflow's handler begins, and its pipeline of three stages has ended; idle and under load.

`python -m bench.latency --help`
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import click
import psycopg

from .kit import load, report
from .kit.app import Post, posts
from .kit.database import Server, machine, server
from .kit.steps import check_books, submitted, wait_until
from .relay import percentile

LOADS = (10, 50, 80)
"""Percent of capacity."""

PARTS = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
WARM_UP = 200
CLOCK_MS = 1.0
"""By how much the machine's clock may be put right during a run."""

IDLE = "SELECT coalesce(bool_and(idle), false) AND NOT EXISTS (SELECT FROM outbox.jobs) FROM outbox.workers"

Notes = dict[str, tuple[float, float]]
"""For each entity when its first handler began, and when the COMMIT of its last step was answered."""


@dataclass(frozen=True, slots=True)
class Run:
    """Of each workflow the ms to its first handler and to its final status, and by how many ms it was sent too late."""

    handler: list[float]
    final: list[float]
    late: list[float] = field(default_factory=list)


@click.command()
@click.option("--seconds", default=40.0, show_default=True, help="How long each load lasts.")
@click.option("--single", default=1_000, show_default=True, help="Workflows of a round that come one at a time.")
@click.option("--saturated", default=20_000, show_default=True, help="Workflows of a run that finds the capacity.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(seconds: float, single: int, saturated: int, rounds: int, json_file: Path | None) -> None:
    """Measure one worker process. In each round: its capacity, then each load, each on a fresh database."""
    runs: dict[str, list[Run]] = {}
    capacities: list[float] = []
    with server() as postgres:
        for number in range(1, rounds + 1):
            report.progress(f"round {number} of {rounds}: capacity")
            with postgres.database() as dsn:
                capacities.append(capacity(postgres, dsn, whole(saturated)))
            subjects: dict[str, Callable[[str], Run]] = {"idle": lambda dsn: one_at_a_time(dsn, single)}
            for percent in LOADS:
                rate = capacities[-1] * percent / 100
                subjects[f"{percent} %"] = partial(loaded, postgres, workflows=whole(rate * seconds), rate=rate)
            for name, measure in subjects.items():
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    runs.setdefault(name, []).append(measure(dsn))
        where = machine(postgres.dsn)
    figures = {"capacity, workflows/s": report.spread(capacities)}
    for name, found in runs.items():
        for title, values in (
            ("COMMIT to handler", [run.handler for run in found]),
            ("COMMIT to final status", [run.final for run in found]),
            ("sent late by", [run.late for run in found if run.late]),
        ):
            for part, share in PARTS.items():
                if values:
                    figures[f"{name}: {title}, {part} ms"] = report.spread([percentile(v, share) for v in values])
    settings = {"seconds": seconds, "single": single, "in a transaction": load.AT_ONCE, "rounds": rounds}
    report.show("latency", settings, figures, where, json_file)


def whole(workflows: float) -> int:
    """Return so many workflows that each client of the load has as many full transactions, and at least one."""
    share = load.AT_ONCE * load.CLIENTS
    return max(1, round(workflows / share)) * share


def capacity(postgres: Server, dsn: str, workflows: int) -> float:
    """Return workflows/s from the first one sent to the last final status, when all are sent as fast as it goes."""
    with timed_worker(dsn) as notes:
        begun = time.time()
        load.submit(postgres, dsn, workflows)
        wait_until(dsn, IDLE, 600)
    check(dsn, notes, workflows)
    return workflows / (max(final for _, final in notes.values()) - begun)


def loaded(postgres: Server, dsn: str, workflows: int, rate: float) -> Run:
    """Return what workflows wait that come at a rate, whatever the engine does."""
    with timed_worker(dsn) as notes:
        sent = load.submit(postgres, dsn, workflows, rate)
        wait_until(dsn, IDLE, 600)
    check(dsn, notes, workflows)
    found = waits(notes, {entity: transaction.should_have for entity, transaction in sent.items()})
    return replace(found, late=[transaction.late * 1000 for transaction in sent.values()])


def one_at_a_time(dsn: str, workflows: int) -> Run:
    """Return what workflows wait each of which finds the worker idle."""
    committed: dict[str, float] = {}
    with timed_worker(dsn) as notes, psycopg.connect(dsn, autocommit=True) as conn:
        for number in range(workflows):
            entity = f"post_single_{number}"
            posts.submit(conn, entity, Post(content="thank you for the new release"))
            committed[entity] = time.time()
            while conn.execute(IDLE).fetchone() != (True,):
                time.sleep(0.05)
    check(dsn, notes, workflows)
    return waits(notes, committed)


def waits(notes: Notes, committed: Mapping[str, float]) -> Run:
    """Return what each workflow waited since its COMMIT."""
    pairs = [(at, *notes[entity]) for entity, at in committed.items()]
    return Run([(began - at) * 1000 for at, began, _ in pairs], [(ended - at) * 1000 for at, _, ended in pairs])


def check(dsn: str, notes: Notes, workflows: int) -> None:
    """An error unless the books are right and the worker has noted every workflow, and no answer was lost."""
    with psycopg.connect(dsn) as conn:
        (now,) = conn.execute("SELECT clock_timestamp() - interval '1 day'").fetchone() or (None,)
    check_books(dsn, workflows + WARM_UP, now)
    if len(notes) != workflows + WARM_UP:
        raise click.ClickException(f"the worker has noted {len(notes):,} workflows, not {workflows + WARM_UP:,}")


def clock() -> float:
    """Return how far the machine's clock is ahead of the monotonic one (s): by the quickest of some looks at both.

    Between the two halves of a look this process may have to wait for its turn.
    """
    looks = []
    for _ in range(1_000):
        before, now, after = time.monotonic(), time.time(), time.monotonic()
        looks.append((after - before, now - (before + after) / 2))
    return min(looks)[1]


@contextmanager
def timed_worker(dsn: str, idle: str = IDLE) -> Iterator[Notes]:
    """Run a worker that is warm, and idle when this begins; its notes are there when this has ended."""
    notes: Notes = {}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "notes.json")
        root = Path(__file__).parent.parent
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


if __name__ == "__main__":
    main()
