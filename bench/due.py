"""Measures how a hundred thousand deadlines or jobs due in the same second affect everything else.

`python -m bench.due --help`
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import click
import psycopg

from outbox import Pipeline
from outbox.definition import deploy

from .kit import load, report
from .kit.database import Server, machine, server
from .kit.steps import wait_until
from .kit.waited import PARTS, timed_worker, waits, whole

late: Pipeline[dict[str, object]] = Pipeline("late", initial="WAITING", final={"LATE", "DONE"})
late.deadline("WAITING", hours=1, to="LATE")
late.stage("go", on="SCHEDULED", to="DONE")(lambda run: None)
late.allow("WAITING", to="SCHEDULED")

AFTER = 3
"""Seconds from the start of the load until the deadlines or jobs are due."""

DUE = {
    "none": "SELECT",
    "deadlines": f"UPDATE outbox.jobs SET deadline = now() + interval '{AFTER} s' WHERE pipeline = 'late'",
    "jobs": f"UPDATE outbox.jobs SET run_at = now() + interval '{AFTER} s', due = false WHERE pipeline = 'late'",
}
READY = (
    "SELECT coalesce(bool_and(idle), false) AND NOT EXISTS (SELECT FROM outbox.jobs WHERE pipeline = 'posts')"
    " FROM outbox.workers"
)
"""Tells whether the worker is idle. What is due later is already in the database."""
LEFT = "SELECT NOT EXISTS (SELECT FROM outbox.jobs WHERE pipeline = 'late' AND (deadline IS NOT NULL OR NOT due))"


@click.command()
@click.option("--many", default=100_000, show_default=True, help="How many are due in the same second.")
@click.option("--rate", default=500.0, show_default=True, help="Other workflows a second, of three stages each.")
@click.option("--seconds", default=15.0, show_default=True, help="How long these come.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(many: int, rate: float, seconds: float, rounds: int, json_file: Path | None) -> None:
    """Measure one worker under a steady load, with and without them. In each round each has its turn."""
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            for kind in DUE:
                report.progress(f"round {number} of {rounds}: {kind}")
                with postgres.database() as dsn:
                    waited, took = measured(postgres, dsn, kind, many, rate, seconds)
                name = kind if kind == "none" else f"{many:,} {kind} due"
                for part, share in PARTS.items():
                    figure = f"{name}: COMMIT of others to their handler, {part} ms"
                    found.setdefault(figure, []).append(report.percentile(waited, share))
                if kind != "none":
                    found.setdefault(f"{name}: until the last of them has gone, s", []).append(took)
        where = machine(postgres.dsn)
    figures = {name: report.spread(values) for name, values in found.items()}
    settings = {"rate of others, workflows/s": rate, "seconds": seconds, "rounds": rounds}
    report.show("due", settings, figures, where, json_file)


def measured(
    postgres: Server, dsn: str, kind: str, many: int, rate: float, seconds: float
) -> tuple[list[float], float]:
    """Returns how long each other workflow waited, in ms, and the seconds from the due time until the last was gone."""
    gone: list[float] = []
    workflows = whole(rate * seconds)
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy.deploy(conn, late)
        if kind != "none":
            late.submit_many(conn, ((f"late_{number}", {}) for number in range(many)))
        if kind == "jobs":  # scheduled from the start, so that the worker is idle
            conn.execute("UPDATE outbox.workflow_states SET current_status = 'SCHEDULED' WHERE pipeline = 'late'")
            conn.execute("UPDATE outbox.jobs SET due = false, run_at = now() + interval '1 h' WHERE pipeline = 'late'")
        conn.execute("VACUUM ANALYZE outbox.jobs")
        with timed_worker(dsn, idle=READY) as notes:
            conn.execute(DUE[kind].encode())
            due = time.monotonic() + AFTER

            def watch() -> None:
                wait_until(dsn, LEFT, 300)
                gone.append(time.monotonic() - due)

            watching = threading.Thread(target=watch)
            watching.start()
            sent = load.submit(postgres, dsn, workflows, rate)
            wait_until(dsn, READY, 300)
            watching.join()
    run = waits(notes, {entity: transaction.should_have for entity, transaction in sent.items()})
    return run.handler, gone[0]


if __name__ == "__main__":
    main()
