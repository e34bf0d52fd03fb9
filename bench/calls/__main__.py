"""Measures workflows whose handlers wait for HTTP, a thousand at once in one process: Outbox beside its peers.

`python -m bench.calls --help`
"""

from __future__ import annotations

from pathlib import Path

import click

from kit.broker import programs

from ..kit import report
from ..kit.database import machine, server
from ..peers.job import STATUS_AFTER
from ..peers.theirs import rabbitmq
from . import subjects
from .subjects import SUBJECTS, Subject, Turn

MINE = ("alone", "outbox")
PARTS = {"p50": 0.5, "p99": 0.99}


@click.command()
@click.option("--workflows", default=1_000, show_default=True, help="Workflows of a run, all of them at once.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--seed", default=1, show_default=True, help="Of the service's answers: the same in each run.")
@click.option(
    "--peer", "names", multiple=True, type=click.Choice([*(name for name in SUBJECTS if name not in MINE), "none"]),
    help="Only this one (may be repeated).",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(workflows: int, rounds: int, seed: int, names: tuple[str, ...], json_file: Path | None) -> None:
    """Measure Outbox and its peers. In each round every subject has its turn, on a fresh database."""
    chosen = [subject for name, subject in SUBJECTS.items() if name in MINE or not names or name in names]
    if programs() is None and any(subject.server == "RabbitMQ" for subject in chosen):
        report.progress("there is no RabbitMQ on this machine (install rabbitmq-server): what needs it is left out")
        chosen = [subject for subject in chosen if subject.server != "RabbitMQ"]
    versions = {subject.title: subjects.packages(subject) for subject in chosen}
    found: dict[str, list[float]] = {}
    with server() as postgres, rabbitmq(any(subject.server == "RabbitMQ" for subject in chosen)) as broker:
        for number in range(1, rounds + 1):
            for subject in chosen if number % 2 else reversed(chosen):
                report.progress(f"round {number} of {rounds}: {subject.title}")
                turn = subjects.turn(postgres, subject, workflows, seed, broker, counts=False)
                for name, value in measured(subject, turn, workflows).items():
                    found.setdefault(f"{subject.title}: {name}", []).append(value)
        for subject in (subject for subject in chosen if subject.uses_postgres):
            report.progress(f"statements: {subject.title}")
            turn = subjects.turn(postgres, subject, workflows, seed, broker, counts=True)
            steps = workflows * len(STATUS_AFTER)
            found[f"{subject.title}: statements/step"] = [turn.statements / steps]
        where = machine(postgres.dsn)
    figures = {name: report.spread(values) for name, values in found.items()}
    settings = {"workflows": workflows, "rounds": rounds, "seed": seed}
    report.show("calls", settings, figures, {**where, "peers": versions}, json_file)


def measured(subject: Subject, turn: Turn, workflows: int) -> dict[str, float]:
    """Returns the figures of one run."""
    thousands = workflows / 1_000
    figures = {"workflows/s": workflows / turn.seconds}
    for part, share in PARTS.items():
        figures[f"a workflow's time beyond its requests, {part} ms"] = report.percentile(turn.own, share) * 1_000
    figures["CPU of the process, s/1,000 workflows"] = turn.cpu / thousands
    if subject.uses_postgres:
        figures["CPU of Postgres, s/1,000 workflows"] = turn.postgres_cpu / thousands
    if subject.server:
        figures[f"CPU of {subject.server}, s/1,000 workflows"] = turn.server_cpu / thousands
    figures["peak memory of the process, MB"] = turn.memory
    return figures


if __name__ == "__main__":
    main()
