"""Measures the time from COMMIT to a workflow's handler and to the end of its three stages, idle and under load.

`python -m bench.latency --help`
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import psycopg

from .kit import load, report
from .kit.app import Post, posts
from .kit.database import Server, machine, server
from .kit.steps import wait_until
from .kit.waited import IDLE, PARTS, Run, capacity, check, timed_worker, waits, whole

LOADS = (10, 50, 80)
"""The loads, in percent of capacity."""


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
                    figures[f"{name}: {title}, {part} ms"] = report.spread(
                        [report.percentile(v, share) for v in values]
                    )
    settings = {"seconds": seconds, "single": single, "in a transaction": load.AT_ONCE, "rounds": rounds}
    report.show("latency", settings, figures, where, json_file)


def loaded(postgres: Server, dsn: str, workflows: int, rate: float) -> Run:
    """Returns how long workflows wait that arrive at a rate, no matter how the engine keeps up."""
    with timed_worker(dsn) as notes:
        sent = load.submit(postgres, dsn, workflows, rate)
        wait_until(dsn, IDLE, 600)
    check(dsn, notes, workflows)
    found = waits(notes, {entity: transaction.should_have for entity, transaction in sent.items()})
    return replace(found, late=[transaction.late * 1000 for transaction in sent.values()])


def one_at_a_time(dsn: str, workflows: int) -> Run:
    """Returns how long workflows wait that each find the worker idle."""
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


if __name__ == "__main__":
    main()
