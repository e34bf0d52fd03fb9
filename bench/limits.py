"""Measures what limits cost a stage: the jobs/s of one process with each kind of limit, and without.

`python -m bench.limits --help`
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import psycopg

from outbox import Pipeline
from outbox.definition import deploy

from .kit import report, tenants
from .kit.app import Shape
from .kit.database import machine, server, worker
from .kit.steps import check_books, wait_until

TEN = 10
"""How many jobs the small tenant has."""


@click.command()
@click.option("--jobs", default=60_000, show_default=True, help="Jobs of a run.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, rounds: int, json_file: Path | None) -> None:
    """Measure jobs a second of a stage that changes nothing but the status. In each round every kind has its turn."""

    def of(pipeline: Pipeline[Any], many: int = 1) -> Callable[[str], float]:
        return partial(jobs_per_second, pipeline=pipeline, jobs=jobs, many=many)

    subjects: dict[str, Callable[[str], float]] = {
        "no limits, jobs/s": of(tenants.none),
        "concurrency, jobs/s": of(tenants.concurrency),
        "rate, jobs/s": of(tenants.rate),
        "priority, jobs/s": of(tenants.priority),
        "10 tenants in turn, jobs/s": of(tenants.in_turn, 10),
        "10,000 tenants in turn, jobs/s": of(tenants.in_turn, 10_000),
        "10 tenants, concurrency and rate of each, jobs/s": of(tenants.each, 10),
        "10,000 tenants, concurrency and rate of each, jobs/s": of(tenants.each, 10_000),
        f"{TEN} jobs behind those of another tenant, at 2,000 jobs/s: all done, s": partial(last_of_few, jobs=jobs),
    }
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            for name, measure in subjects.items():
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    found.setdefault(name, []).append(measure(dsn))
        where = machine(postgres.dsn)
    alone, *limited = [name for name in subjects if name.endswith("jobs/s")]
    for name in limited:
        pairs = zip(found[name], found[alone], strict=True)
        found[f"{name.removesuffix(', jobs/s')} : no limits"] = [with_ / without for with_, without in pairs]
    figures = {name: report.spread(values) for name, values in found.items()}
    report.show("limits", {"jobs": jobs, "rounds": rounds}, figures, where, json_file)


def jobs_per_second(dsn: str, pipeline: Pipeline[Any], jobs: int, many: int) -> float:
    """Returns the jobs/s of one worker on a backlog of `many` tenants, whose jobs are in random order."""
    of = [number % many for number in range(jobs)]
    random.shuffle(of)
    with worked(dsn, pipeline):
        start = submitted(dsn, pipeline, of)
        wait_until(dsn, f"SELECT sum(workflows) = {jobs} FROM outbox.status_counts WHERE status = 'COMPLETED'", 600)
    return check_books(dsn, jobs, start, Shape(pipeline, 1))


def last_of_few(dsn: str, jobs: int) -> float:
    """Returns the seconds until the ten jobs of a tenant are done that came after all jobs of another tenant."""
    with worked(dsn, tenants.fair):
        start = submitted(dsn, tenants.fair, [0] * jobs + [1] * TEN)
        small = (
            "FROM outbox.workflow_states AS w WHERE w.metadata ->> 'tenant' = '1' AND w.current_status = 'COMPLETED'"
        )
        wait_until(dsn, f"SELECT count(*) = {TEN} {small}", 600)
    with psycopg.connect(dsn) as conn:
        row = conn.execute(f"SELECT extract(epoch FROM max(w.updated_at) - %s)::float8 {small}".encode(), (start,))
        ((took,),) = row.fetchall()
    return float(took)


def worked(dsn: str, pipeline: Pipeline[Any]) -> Any:
    """Deploys the pipeline, and returns a context with a worker of it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy.deploy(conn, pipeline)
    return worker(dsn, f"bench.kit.tenants:{pipeline.name}")


def submitted(dsn: str, pipeline: Pipeline[Any], of: list[int]) -> Any:
    """Submits a job for each tenant in `of`, once a worker is idle. Returns the database's clock after COMMIT."""
    wait_until(dsn, "SELECT count(*) = 1 FROM outbox.workers WHERE idle", 60)
    with psycopg.connect(dsn) as conn:
        items = ((f"job_{n}", tenants.Task(tenant=tenant, urgency=n % 7)) for n, tenant in enumerate(of))
        pipeline.submit_many(conn, items)
        conn.commit()
        (now,) = conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
    return now


if __name__ == "__main__":
    main()
