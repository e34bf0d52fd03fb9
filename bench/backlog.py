"""Measures a backlog of a million: how fast `outbox submit FILE` makes it, a worker works on it, and both use memory.

`python -m bench.backlog --help`
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import psutil
import psycopg

from .kit import report
from .kit.database import machine, server, worker
from .kit.steps import wait_until

LINE = '{{"entity_id": "post_{}", "metadata": {{"content": "Three times faster, thank you! #postgres"}}}}\n'


@click.command()
@click.option("--jobs", default=1_000_000, show_default=True, help="Lines of the file.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the worker works on them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, seconds: float, json_file: Path | None) -> None:
    """Submit a file of many lines and let a worker start on it; the peak memory of each process is sampled."""
    with server() as postgres, postgres.database() as dsn, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "posts.jsonl")
        with file.open("w") as lines:
            lines.writelines(LINE.format(number) for number in range(jobs))
        report.progress(f"outbox submit of {jobs:,} lines")
        started = time.monotonic()
        submit = subprocess.Popen(
            [sys.executable, "-m", "outbox", "submit", str(file), "--pipeline", "posts"],
            env={**os.environ, "OUTBOX_DSN": dsn},
            stdout=subprocess.DEVNULL,
        )
        submit_memory = peak_megabytes(submit)
        if submit.returncode:
            raise click.ClickException(f"outbox submit ended with {submit.returncode}")
        rate = jobs / (time.monotonic() - started)
        report.progress(f"a worker for {seconds:g} s")
        with worker(dsn) as process:
            wait_until(dsn, "SELECT count(*) > 0 FROM outbox.state_changes WHERE from_status IS NOT NULL", 60)
            worker_memory = peak_megabytes(process, seconds)
            with psycopg.connect(dsn) as conn:
                row = conn.execute(
                    "SELECT count(*) / extract(epoch FROM max(at) - min(at)) FROM outbox.state_changes"
                    " WHERE from_status IS NOT NULL"
                ).fetchone()
        figures = {
            "outbox submit FILE, workflows/s": report.spread([rate]),
            "outbox submit FILE, peak MB": report.spread([submit_memory]),
            "worker, steps/s": report.spread([float(row[0]) if row else 0.0]),
            "worker, peak MB": report.spread([worker_memory]),
        }
        report.show("backlog", {"jobs": jobs, "seconds": seconds}, figures, machine(dsn), json_file)


def peak_megabytes(process: subprocess.Popen[bytes], seconds: float = float("inf")) -> float:
    """Returns the peak resident memory (MB) of a process until it ends or the time is over."""
    until, peak = time.monotonic() + seconds, 0
    watched = psutil.Process(process.pid)
    while process.poll() is None and time.monotonic() < until:
        peak = max(peak, watched.memory_info().rss)
        time.sleep(0.05)
    return peak / 2**20


if __name__ == "__main__":
    main()
