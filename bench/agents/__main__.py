"""Measures what agents cost: that their calls are kept, and that a thousand of them wait for people.

`python -m bench.agents --help`
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from ..kit import report
from ..kit.database import machine, server
from . import kept, waiting


@click.command()
@click.option("--runs", default=60, show_default=True, help="Runs of each agent in a round.")
@click.option("--turns", default=5, show_default=True, help="Tool calls of a run, each after a model request.")
@click.option("--parallel", default=8, show_default=True, help="Tool calls of one response, in the runs with many.")
@click.option("--agents", default=1_000, show_default=True, help="Agents that wait for approvals.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the idle worker is watched in a round.")
@click.option("--settle", default=11.0, show_default=True, help="Seconds before: Postgres counts up to 10 s late.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    runs: int, turns: int, parallel: int, agents: int, seconds: float, settle: float, rounds: int,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Measure kept calls, one workflow at a time, whose model and tools answer at once; then an idle worker."""
    found: dict[str, list[float]] = {}
    with server() as postgres, ExitStack() as made:
        report.progress(f"{agents:,} agents run until they wait, and as many until they end")
        prepared = made.enter_context(waiting.prepared(postgres, agents))
        for number in range(1, rounds + 1):
            report.progress(f"round {number} of {rounds}: kept calls")
            figures = kept.figures(postgres, runs, turns, parallel)
            report.progress(f"round {number} of {rounds}: a worker beside {agents:,} agents that wait")
            figures |= waiting.figures(postgres, prepared, agents, seconds, settle)
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
        where = machine(postgres.dsn)
    settings = {
        "runs": runs, "turns": turns, "parallel": parallel, "agents": agents, "seconds": seconds, "rounds": rounds,
    }  # fmt: skip
    report.show("agents", settings, {name: report.spread(values) for name, values in found.items()}, where, json_file)


if __name__ == "__main__":
    main()
