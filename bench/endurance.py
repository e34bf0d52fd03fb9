"""Measures what a transaction that stays open for minutes does to the engine's queue, and to one with SKIP LOCKED.

Load arrives at a fixed rate all the time. `python -m bench.endurance --help`
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg

from .kit import load, plain_jobs, report
from .kit.app import STAGES
from .kit.database import Server, machine, megabytes, server
from .kit.horizon import around, horizon
from .kit.notes import Notes
from .kit.steps import check_books, wait_until
from .kit.waited import IDLE, capacity, whole

CAPACITY = 20_000
"""Workflows in the run that measures the capacity of one worker."""

LEFT = 1_800
"""Seconds after the end of the load within which the worker must have caught up."""

PLAIN_SCRIPT = load.SCRIPT.replace(
    "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)\nSELECT 'posts',",
    "INSERT INTO plain_jobs (status, entity_id, payload)\nSELECT 'RECEIVED',",
)
DEAD = "SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = %s::regclass"


@dataclass(frozen=True, slots=True)
class Subject:
    """A queue: its table, the module of its worker, the script of its load, and a query for whether all is done."""

    table: str
    worker: str
    script: str
    done: str


SUBJECTS = {
    "Outbox": Subject("outbox.jobs", "bench.kit.claims", load.SCRIPT, IDLE),
    "SKIP LOCKED": Subject(
        "plain_jobs", "bench.kit.plain_jobs", PLAIN_SCRIPT, "SELECT NOT EXISTS (SELECT FROM plain_jobs)"
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run and a slice last, in seconds, and how much load arrives, in workflows/s."""

    seconds: int
    slice: int
    rate: float

    @property
    def ends(self) -> range:
        return range(self.slice, self.seconds + 1, self.slice)

    def held(self, end: int) -> bool:
        """Tells whether the horizon is held in the slice that ends then: in the two middle quarters it is."""
        return self.seconds / 4 < end <= self.seconds * 3 / 4


@click.command()
@click.option("--seconds", default=600, show_default=True, help="How long each queue is worked on; half of it is held.")
@click.option("--slice", "slice_", default=15, show_default=True, help="Seconds of a line of the table.")
@click.option("--share", default=30.0, show_default=True, help="The rate, in percent of what one worker can do.")
@click.option("--rate", type=float, help="The rate in workflows/s, instead of a share.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@report.svg_option
def main(
    seconds: int, slice_: int, share: float, rate: float | None, json_file: Path | None, svg_file: Path | None
) -> None:
    """Measure both, one after the other. A transaction holds the horizon from the second quarter to the third."""
    if slice_ < 1 or seconds < 4 * slice_:
        raise click.BadParameter("each quarter of the time needs a slice", param_hint="--slice")
    settings: dict[str, Any] = {"seconds": seconds, "stages": len(STAGES), "in a transaction": load.AT_ONCE}
    found = {}
    with server() as postgres:
        if rate is None:
            report.progress("capacity")
            with postgres.database() as dsn:
                most = capacity(postgres, dsn, whole(CAPACITY))
            rate = most * share / 100
            settings |= {"capacity in workflows/s": round(most), "share in %": share}
        settings["rate in workflows/s"] = round(rate)
        for name, subject in SUBJECTS.items():
            report.progress(f"{name} for {seconds} s at {rate:,.0f} workflows/s")
            with postgres.database() as dsn:
                found[name] = run(postgres, dsn, subject, Plan(seconds, slice_, rate))
        where = machine(postgres.dsn)
    figures = {
        f"{name}: {title}": report.spread([value])
        for name, lines in found.items()
        for title, value in compared(lines).items()
    }
    report.show_series("endurance", settings, found, where, json_file, svg_file, figures)


def run(postgres: Server, dsn: str, subject: Subject, plan: Plan) -> list[dict[str, Any]]:
    """Loads a queue for some seconds. Returns a line for each slice. Raises unless each step was made once."""
    workflows = whole(plan.rate * plan.seconds)
    samples: list[dict[str, Any]] = []
    with psycopg.connect(dsn, autocommit=True) as conn, horizon(dsn) as transaction:
        conn.execute(plain_jobs.TABLE)
        with noting(dsn, subject) as notes:
            with load.sending(postgres, dsn, workflows, plan.rate, subject.script) as sent:
                started = time.time()
                for end in plan.ends:
                    transaction.hold(plan.held(end))
                    time.sleep(max(0.0, started + end - time.time()))
                    (dead,) = conn.execute(DEAD, (subject.table,)).fetchone() or (0,)
                    samples.append({"dead rows": dead, "MB": megabytes(conn, subject.table)})
                transaction.hold(False)
                submits = [submit.committed for _, _, submit in sent()]
            wait_until(dsn, subject.done, LEFT)
        check(conn, dsn, subject, notes, workflows)
    return [
        {
            "second": end,
            "horizon": "held" if plan.held(end) else "",
            **noted(notes, submits, started, end, plan),
            **sample,
        }
        for end, sample in zip(plan.ends, samples, strict=True)
    ]


def noted(notes: Notes, submits: Sequence[float], started: float, end: int, plan: Plan) -> dict[str, float]:
    """Returns what the worker noted in a slice, and how many steps are left at its end."""
    first, last = started + end - plan.slice, started + end
    claims = [took for at, took, _ in notes.claims if first <= at < last]
    submitted = sum(at < last for at in submits) * load.AT_ONCE * len(STAGES)
    return {
        "steps/s": sum(jobs for at, jobs in notes.steps if first <= at < last) / plan.slice,
        # Without a claim there is no time, rather than a time of 0 ms.
        **({"claim ms": statistics.median(claims), "claim p99 ms": report.percentile(claims, 0.99)} if claims else {}),
        "claims/s": len(claims) / plan.slice,
        "steps left": submitted - sum(jobs for at, jobs in notes.steps if at < last),
    }


def compared(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns a series in short: before the horizon was held, and while it was. Leaves out figures without values."""
    before, during = around(lines)
    last = during[-1]

    def mean(some: Sequence[Mapping[str, Any]], column: str) -> float | None:
        values = [float(line[column]) for line in some if column in line]
        return statistics.mean(values) if values else None

    rate, held = mean(before, "steps/s"), mean(during, "steps/s")
    found = {
        "steps/s held : before": held / rate if held is not None and rate else None,
        "claim before, ms": mean(before, "claim ms"),
        "claim at the end of it, ms": last.get("claim ms"),
        "claim p99 before, ms": mean(before, "claim p99 ms"),
        "claim p99 at the end of it, ms": last.get("claim p99 ms"),
        "dead at the end of it, rows": last["dead rows"],
        "size at the end of it, MB": last["MB"],
    }
    return {title: value for title, value in found.items() if value is not None}


@contextmanager
def noting(dsn: str, subject: Subject) -> Iterator[Notes]:
    """Runs the worker of a queue. Its notes are complete when the block has ended."""
    notes = Notes()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "notes.json")
        process = subprocess.Popen(
            [sys.executable, "-m", subject.worker, dsn, str(file)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(dsn, subject.done, 60)
            yield notes
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        found = Notes.read(file)
        notes.claims, notes.steps = found.claims, found.steps


def check(conn: psycopg.Connection, dsn: str, subject: Subject, notes: Notes, workflows: int) -> None:
    """Raises unless every step was made once, and noted."""
    if subject.table == "outbox.jobs":
        (now,) = conn.execute("SELECT clock_timestamp() - interval '1 day'").fetchone() or (None,)
        check_books(dsn, workflows, now)
    made = sum(jobs for _, jobs in notes.steps)
    if made != workflows * len(STAGES):
        raise click.ClickException(f"the books are wrong: {made:,} steps of {workflows:,} workflows were noted")


if __name__ == "__main__":
    main()
