"""Measures what it brings, or costs, that handlers share a transaction, for several kinds of handlers.

`python -m bench.sharing --help`
"""

from __future__ import annotations

from pathlib import Path

import click
import psycopg

from outbox.definition import deploy

from .kit import report, turns
from .kit.app import Shape
from .kit.database import machine, server
from .kit.steps import steps


@click.command()
@click.option("--jobs", default=3_000, show_default=True, help="Workflows of a run; each makes two steps.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, rounds: int, json_file: Path | None) -> None:
    """Measure steps a second with a transaction for each job and with shared ones, in the other order each round."""
    subjects: dict[str, Shape] = {}
    for (what, _), alone, shared in zip(turns.HANDLERS.values(), turns.ALONE, turns.SHARED, strict=True):
        for how, pipeline in (("alone", alone), ("shared", shared)):
            subjects[f"{what}, {how}, steps/s"] = Shape(pipeline, 2, rows=2, module=turns.__name__)
    found: dict[str, list[float]] = {}
    with server() as postgres:
        for number in range(1, rounds + 1):
            for name in list(subjects)[:: 1 if number % 2 else -1]:
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    found.setdefault(name, []).append(measured(dsn, subjects[name], jobs))
        where = machine(postgres.dsn)
    for what, _ in turns.HANDLERS.values():
        pairs = zip(found[f"{what}, shared, steps/s"], found[f"{what}, alone, steps/s"], strict=True)
        found[f"{what}, shared : alone"] = [with_ / without for with_, without in pairs]
    figures = {name: report.spread(values) for name, values in found.items()}
    report.show("sharing", {"jobs": jobs, "rounds": rounds, "share": turns.SHARE}, figures, where, json_file)


def measured(dsn: str, shape: Shape, jobs: int) -> float:
    """Returns the steps/s of one worker. Raises unless each handler's changes were made once."""
    hot = "hot" in shape.pipeline.name
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy.deploy(conn, shape.pipeline)
        conn.execute(turns.TABLE)
        conn.execute("INSERT INTO accounts SELECT generate_series(0, %s)", (turns.ACCOUNTS - 1,))
        rate = steps(dsn, jobs, shape=shape)
        changes = conn.execute("SELECT sum(changes)::int FROM accounts").fetchone()
    if changes != (jobs * shape.steps * hot,):
        raise click.ClickException(f"the books are wrong: {changes} changes of accounts for {jobs} workflows")
    return rate


if __name__ == "__main__":
    main()
