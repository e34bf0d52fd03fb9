"""Measures how long after `kill -9` of a worker another one starts the next attempts at its jobs, with defaults.

`python -m bench.recovery --help`
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import psycopg

from outbox.definition import deploy

from .kit import report
from .kit.database import Server, engine, machine, server
from .kit.holding import NOTES, held
from .kit.steps import wait_until
from .peers.recovery import recoveries as recoveries_of_peers

JOBS = 10
"""How many jobs a worker holds when it is killed."""

READY = "SELECT count(*) = {} FROM outbox.workers WHERE idle AND watched"
DONE = "SELECT NOT EXISTS (SELECT FROM outbox.jobs)"


@click.command()
@click.option("--kills", default=100, show_default=True, help="Workers killed, all in all.")
@click.option("--at-once", default=4, show_default=True, help="Databases in which workers are killed at the same time.")
@click.option("--peer-kills", default=2, show_default=True, help="Workers killed of each peer; 0 leaves peers out.")
@click.option("--patience", default=180.0, show_default=True, help="Seconds that a peer is given for the next attempt.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(kills: int, at_once: int, peer_kills: int, patience: float, json_file: Path | None) -> None:
    """Kill workers that hold jobs, each beside one that is idle; then those of peers, of one job each."""
    shares = [kills // at_once + (number < kills % at_once) for number in range(at_once)]
    settings: dict[str, Any] = {"kills": kills, "jobs": JOBS, "at once": at_once}
    with server() as postgres:
        with ThreadPoolExecutor(at_once) as threads:
            report.progress(f"{kills} kills, in {at_once} databases at once")
            found = [times for some in threads.map(partial(recoveries, postgres), shares) for times in some]
        where = machine(postgres.dsn)
    theirs = recoveries_of_peers(peer_kills, patience) if peer_kills else {}
    figures = {}
    for name, values in (("first", [min(times) for times in found]), ("last", [max(times) for times in found])):
        figures[f"to the {name} of its jobs, s"] = report.spread(values)
        figures[f"to the {name} of its jobs, p99 s"] = report.spread([report.percentile(values, 0.99)])
    if theirs:
        settings |= {"of each peer": peer_kills, "patience s": patience}
        for title, times in theirs.items():
            figures[f"{title}, s" if times else f"{title}: none within, s"] = report.spread(times or [patience])
    report.show("recovery", settings, figures, where, json_file)


def recoveries(postgres: Server, kills: int) -> list[list[float]]:
    """Returns for each kill the seconds to the next attempt at each of the worker's jobs."""
    found: list[list[float]] = []
    with (
        postgres.database() as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        ExitStack() as running,
    ):
        deploy.deploy(conn, held)
        notes = Path(folder, "notes")
        notes.touch()

        def start() -> subprocess.Popen[bytes]:
            settings = {NOTES: str(notes)}
            return running.enter_context(engine(dsn, "worker", "--app", "bench.kit.holding:held", **settings))

        holder = start()
        wait_until(dsn, READY.format(1), 60)
        for kill in range(kills):
            held.submit_many(conn, ((f"{kill}-{job}", {}) for job in range(JOBS)))
            until_noted(notes, kill, attempt=1)
            other = start()
            wait_until(dsn, READY.format(2), 60)
            time.sleep(random.uniform(0, 2))  # at any moment between two looks of the other worker
            at = time.monotonic()
            holder.kill()
            found.append([begun - at for begun in until_noted(notes, kill, attempt=2)])
            holder = other
        wait_until(dsn, DONE, 60)
        check_books(conn, notes, kills * JOBS)
    return found


def until_noted(notes: Path, kill: int, attempt: int) -> list[float]:
    """Waits for these attempts at the jobs of one kill, and returns when each began."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = [line.split() for line in notes.read_text().splitlines()]
        begun = [float(at) for entity, number, at in lines if entity.startswith(f"{kill}-") and int(number) == attempt]
        if len(begun) >= JOBS:
            return begun
        time.sleep(0.02)
    raise click.ClickException(f"after kill {kill} not all jobs were begun by attempt {attempt} within 120 s")


def check_books(conn: psycopg.Connection, notes: Path, jobs: int) -> None:
    """Raises unless each job was begun twice, and its second attempt made its one change."""
    counts = conn.execute(
        "SELECT count(*) FILTER (WHERE from_status IS NULL), count(*) FILTER (WHERE attempt = 2), count(*),"
        " (SELECT count(*) FROM outbox.dead_jobs) FROM outbox.state_changes"
    ).fetchone()
    begun = [tuple(line.split()[:2]) for line in notes.read_text().splitlines()]
    if counts != (jobs, jobs, 2 * jobs, 0) or not len(begun) == len(set(begun)) == 2 * jobs:
        raise click.ClickException(
            f"the books are wrong: started, ended, changes, dead are {counts} of {jobs} jobs, begun {len(begun)} times"
        )


if __name__ == "__main__":
    main()
