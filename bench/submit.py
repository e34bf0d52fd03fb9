"""Measures submitted workflows/s: one per transaction, ten, all at once, and from a file; small and large ones.

`python -m bench.submit --help`
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import psycopg

from .kit import report
from .kit.app import Post, posts
from .kit.database import machine, server
from .kit.steps import made

PAYLOADS = {"100 B": 100, "2 kB": 2_000, "50 kB": 50_000}
"""Characters of a workflow's metadata as JSON."""

MOST_SINGLE, MOST_BULK = 20_000_000, 100_000_000
"""The most characters in a run, which bound its number of workflows."""

AT_ONCE = 10


@click.command()
@click.option("--single", default=2_000, show_default=True, help="Workflows of a run with small transactions.")
@click.option("--bulk", default=50_000, show_default=True, help="Workflows of a run in one transaction.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(single: int, bulk: int, rounds: int, json_file: Path | None) -> None:
    """Measure each way in with each size. In each round every subject has its turn, on a fresh database."""
    ways: dict[str, tuple[Callable[[str, list[Post]], float], int, int]] = {
        "one a transaction, sync": (lambda dsn, items: in_transactions(dsn, items, 1), single, MOST_SINGLE),
        "one a transaction, async": (lambda dsn, items: asyncio.run(in_async(dsn, items)), single, MOST_SINGLE),
        f"{AT_ONCE} a transaction": (lambda dsn, items: in_transactions(dsn, items, AT_ONCE), single, MOST_SINGLE),
        "submit_many": (in_bulk, bulk, MOST_BULK),
        "outbox submit FILE": (from_file, bulk, MOST_BULK),
    }
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            for size, characters in PAYLOADS.items():
                for name, (measure, workflows, most) in ways.items():
                    items = made(min(workflows, most // characters), characters)
                    subject = f"{size}: {name} ({len(items):,}), workflows/s"
                    report.progress(f"round {number} of {rounds}: {subject}")
                    with postgres.database() as dsn:
                        found.setdefault(subject, []).append(len(items) / measure(dsn, items))
                        check_books(dsn, items)
        where = machine(postgres.dsn)
    figures = {subject: report.spread(rates) for subject, rates in found.items()}
    report.show("submit", {"single": single, "bulk": bulk, "rounds": rounds}, figures, where, json_file)


def in_transactions(dsn: str, items: list[Post], at_once: int) -> float:
    """Returns the seconds that it takes to submit and commit `at_once` workflows at a time on one connection."""
    with psycopg.connect(dsn) as conn:
        started = time.monotonic()
        for number, item in enumerate(items, 1):
            posts.submit(conn, f"post_{number}", item)
            if number % at_once == 0:
                conn.commit()
        conn.commit()
        return time.monotonic() - started


async def in_async(dsn: str, items: list[Post]) -> float:
    """Returns the same for one at a time on an async connection, each awaited before the next."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        started = time.monotonic()
        for number, item in enumerate(items, 1):
            await posts.submit(conn, f"post_{number}", item)
            await conn.commit()
        return time.monotonic() - started


def in_bulk(dsn: str, items: list[Post]) -> float:
    """Returns the seconds that `submit_many` takes in one transaction."""
    with psycopg.connect(dsn) as conn:
        started = time.monotonic()
        posts.submit_many(conn, ((f"post_{number}", item) for number, item in enumerate(items, 1)))
        conn.commit()
        return time.monotonic() - started


def from_file(dsn: str, items: list[Post]) -> float:
    """Returns the seconds that `outbox submit` takes, its start-up included."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "posts.jsonl")
        with file.open("w") as lines:
            for number, item in enumerate(items, 1):
                lines.write(json.dumps({"entity_id": f"post_{number}", "metadata": item.model_dump()}) + "\n")
        command = [sys.executable, "-m", "outbox", "submit", str(file), "--pipeline", "posts"]
        started = time.monotonic()
        done = subprocess.run(
            command, env={**os.environ, "OUTBOX_DSN": dsn}, capture_output=True, text=True, check=False
        )
        took = time.monotonic() - started
    if done.returncode:
        raise click.ClickException(f"outbox submit: {done.stderr}")
    return took


def check_books(dsn: str, items: list[Post]) -> None:
    """Raises unless each workflow is there with its data, one row of history and its job."""
    with psycopg.connect(dsn) as conn:
        counts = conn.execute(
            "SELECT count(*), sum(length(metadata ->> 'content')), (SELECT count(*) FROM outbox.state_changes),"
            " (SELECT count(*) FROM outbox.jobs) FROM outbox.workflow_states"
        ).fetchone()
    expected = (len(items), sum(len(item.content) for item in items), len(items), len(items))
    if counts != expected:
        raise click.ClickException(
            f"the books are wrong: workflows, characters, changes, jobs are {counts}, not {expected}"
        )


if __name__ == "__main__":
    main()
