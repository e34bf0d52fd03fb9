"""Runs configurations, prints the results, and exits with 1 if anything was wrong: `python -m chaos`."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import click

from . import migrating
from .configs import CONFIGS
from .run import Result, dump, report, run


@click.command()
@click.option("--duration", default=180.0, show_default=True, help="Seconds of faults, of each configuration.")
@click.option("--seed", type=int, help="Of the nemesis and the clients; default: at random, and printed.")
@click.option("--rate", default=200.0, show_default=True, help="Calls a second of all clients together.")
@click.option("--config", "names", multiple=True, help="Only this configuration; may be given again.")
@click.option("--migrations", default=0, metavar="N", help="Kill N migrations first, each between two (K12).")
@click.option("--other", metavar="DIR", help="Run every second worker from this folder: pip install --target DIR.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the results to this file.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the logs of runs that aren't clean here.")
def main(
    duration: float,
    seed: int | None,
    rate: float,
    names: tuple[str, ...],
    migrations: int,
    other: str | None,
    file: Path | None,
    keep: Path | None,
) -> None:
    """Torture Outbox: real processes on real servers, faults, four witnesses, and a checker."""
    seed = random.randrange(1_000_000) if seed is None else seed
    known = {config.name: config for config in CONFIGS}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no configuration {', '.join(unknown)}; there are {', '.join(known)}")
    if migrations:
        click.echo(f"{migrating.kill(migrations, seed)} migrations were killed at K12, and the next one went on")
    results: list[Result] = []
    for number, config in enumerate([known[name] for name in names] or CONFIGS):
        results.append(run(replace(config, other=other), seconds=duration, seed=seed + number, rate=rate, keep=keep))
        click.echo(report(results[-1]))
        if file is not None:
            dump(results, file)
    jobs = sum(result.counts.get("jobs", 0) for result in results)
    wrong = sum(not result.ok for result in results)
    click.echo(f"{len(results)} runs, {jobs:,} jobs, {wrong} not clean")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
