"""Measures what an application and its tests pay: the import, an attempt without a database, and a cloned database.

`python -m bench.embedding --help`
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click

from outbox.testing import attempt
from outbox.testing.databases import Databases, server
from pytest_outbox import folder

from .kit import report
from .kit.app import Post, plain, posts
from .kit.database import machine

IMPORT = "import time; began = time.perf_counter(); import outbox; print(1000 * (time.perf_counter() - began))"


@click.command()
@click.option("--calls", default=200, show_default=True, help="Attempts of a round.")
@click.option("--times", default=10, show_default=True, help="Imports and databases of a round.")
@click.option("--rounds", default=5, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(calls: int, times: int, rounds: int, json_file: Path | None) -> None:
    """Measure an import of the package, attempts by `outbox.testing`, and databases of its fixtures."""
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outbox-bench-", dir=folder())))
        home.chmod(0o755)
        dsn = stack.enter_context(server(home))
        databases = Databases(dsn)
        stack.callback(databases.close)
        with databases.clone(posts):  # the template is made once
            pass
        for number in range(1, rounds + 1):
            report.progress(f"round {number} of {rounds}")
            taken = {
                "import outbox, ms": [imported() for _ in range(times)],
                "an attempt of an async stage, ms": [attempted("async", number) for number in range(calls)],
                "an attempt of a plain stage, ms": [attempted("plain", number) for number in range(calls)],
                "a cloned database, ms": [cloned(databases) for _ in range(times)],
            }
            for name, samples in taken.items():
                found.setdefault(name, []).append(statistics.median(samples))
        where = machine(dsn)
    figures = {name: report.spread(values) for name, values in found.items()}
    report.show("embedding", {"calls": calls, "times": times, "rounds": rounds}, figures, where, json_file)


def imported() -> float:
    """Returns the ms of an import in a new interpreter, whose own start isn't counted."""
    program = [sys.executable, "-c", IMPORT]
    return float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def attempted(kind: str, number: int) -> float:
    """Returns the ms of one attempt."""
    began = time.perf_counter()
    done = attempt(plain if kind == "plain" else posts, "enrich", Post(content=f"post {number}"))
    took = time.perf_counter() - began
    if done.status != "ENRICHED" or [message.topic for message in done.messages] != ["posts.enriched"]:
        raise click.ClickException(f"the attempt was another one: {done}")
    return 1000 * took


def cloned(databases: Databases) -> float:
    """Returns the ms until a test has its database. Dropping it isn't counted."""
    began = time.perf_counter()
    with databases.clone(posts):
        return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
