"""Runs pytest again and again, with busy loops beside it: a test that fails sometimes is a defect. See `make test-repeat`.

It counts failures and goes on to the end, since how often a test fails tells more than that it does. What a failed run
has said is printed, and kept in build/repeat/. The exit code is 1 if any run failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

KEPT = Path("build/repeat")
# A loop ends with the process that started it, even if that one is killed.
BUSY = f"import os\nwhile os.getppid() == {os.getpid()}: pass"


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep so many cores busy."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.DEVNULL) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(number: int, arguments: Sequence[str]) -> bool:
    """Run pytest once; say in a line how it ended, and print all if it failed."""
    log = KEPT / f"{number}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run([sys.executable, "-m", "pytest", *arguments], stdout=file, stderr=file, check=False)
    took = time.monotonic() - began
    said = log.read_text(errors="replace")
    if done.returncode:
        click.echo(said)
    last = (said.strip().splitlines() or ["it said nothing"])[-1].strip("= ")
    click.echo(f"run {number}: {'failed' if done.returncode else 'ok'} in {took:.0f} s: {last}")
    return not done.returncode


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--times", default=10, show_default=True, type=click.IntRange(1), help="How many runs.")
@click.option("--load", default=0, show_default=True, type=click.IntRange(0), help="Busy loops beside them.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(times: int, load: int, arguments: Sequence[str]) -> None:
    """Run pytest with ARGUMENTS so many times. Count the runs that fail; exit with 1 if there are any."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob("*.log"):
        old.unlink()
    with busy(load):
        failed = [number for number in range(1, times + 1) if not run(number, arguments)]
    click.echo(f"{len(failed)} of {times} runs failed{f': {failed}' if failed else ''}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    # An end from outside takes the loops along, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    main()
