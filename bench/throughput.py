"""Measures the steps/s of worker processes, for several kinds and sizes of steps, beside the same SQL alone.

A step is: claim, handler, status change, history, message, next job. `python -m bench.throughput --help`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from .kit import report
from .kit.alone import BATCH, CLIENTS, sql_alone
from .kit.app import BATCHED, BOOKED, NOOP, PLAIN, POSTS, SHARED
from .kit.database import machine, server
from .kit.steps import SIZE, steps, submitted
from .kit.wal import Scale

MOST = 40_000_000
"""The most characters of data in a run, which bound its number of workflows."""

Measure = Callable[[str], float]


@click.command()
@click.option("--jobs", default=30_000, show_default=True, help="Workflows of a run; each makes three steps.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, rounds: int, json_file: Path | None) -> None:
    """Measure submit and steps a second. In each round every subject has its turn, on a fresh database."""
    jobs = max(1, jobs // (BATCH * CLIENTS)) * BATCH * CLIENTS

    def sized(size: int) -> Measure:
        return partial(steps, jobs=min(jobs, MOST // size), size=size)

    written: dict[str, list[float]] = {}

    def weighed(dsn: str) -> float:
        scale = Scale(postgres, dsn)
        rate = steps(dsn, jobs, begun=scale.begin)
        for name, value in scale.end(jobs * POSTS.steps).items():
            written.setdefault(f"one process: {name}", []).append(value)
        return rate

    with server() as postgres:
        subjects: dict[str, Measure] = {
            "submit_many, workflows/s": lambda dsn: submitted(dsn, jobs)[0],
            "one process, steps/s": weighed,
            f"SQL alone ({CLIENTS} clients of pgbench), steps/s": partial(sql_alone, postgres, jobs=jobs),
            "two processes, steps/s": partial(steps, jobs=jobs, workers=2),
            "four processes, steps/s": partial(steps, jobs=jobs, workers=4),
            "one process, plain functions, steps/s": partial(steps, jobs=jobs, shape=PLAIN),
            "one process, 2 kB, steps/s": sized(2_000),
            "one process, 50 kB, steps/s": sized(50_000),
            "one process, nothing but the status, jobs/s": partial(steps, jobs=jobs * 2, shape=NOOP),
            "one process, a transaction a step, steps/s": partial(steps, jobs=max(1, jobs // 10), shape=BOOKED),
            "one process, transactions shared in turns, steps/s": partial(steps, jobs=max(1, jobs // 10), shape=SHARED),
            "one process, 100 in a transaction, steps/s": partial(steps, jobs=jobs, shape=BATCHED),
        }
        found: dict[str, list[float]] = {}
        for number in range(1, rounds + 1):
            for name, measure in subjects.items():
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    found.setdefault(name, []).append(measure(dsn))
        where = machine(postgres.dsn)
    one, alone, plain = (
        found[name]
        for name in subjects
        if name.startswith(("one process, steps", "SQL alone", "one process, plain functions"))
    )
    found["one process : SQL alone"] = [mine / theirs for mine, theirs in zip(one, alone, strict=True)]
    found["plain functions : async ones"] = [mine / theirs for mine, theirs in zip(plain, one, strict=True)]
    figures = {name: report.spread(values) for name, values in (found | written).items()}
    settings = {"jobs": jobs, "payload, bytes": SIZE, "batch": BATCH, "rounds": rounds}
    report.show("throughput", settings, figures, where, json_file)


if __name__ == "__main__":
    main()
