"""Finds where workflows come to a standstill: dead ends, stages that nothing leads to, and waits for nothing.

None of it is an error: people may mean to change such a status, or to start workflows there, by plain SQL.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from ..database import statements
from ..database.session import tuples
from ..errors import DefinitionError
from ..texts import number
from .pipeline import Pipeline

SQL = statements.load("dead_ends")


class Unattended(NamedTuple):
    """Workflows in a status that no stage takes, and for which nothing is asked, awaited or timed.

    `dead_end`: no change leads out of the status, but a cancellation.
    """

    pipeline: str
    status: str
    workflows: int
    dead_end: bool

    def __str__(self) -> str:
        why = "and no change leads out of it" if self.dead_end else "with no question, signal, children or deadline"
        return (
            f"{number(self.workflows, 'workflow')} in {self.status} wait{'s' * (self.workflows == 1)} for nothing: "
            f"no stage takes it, {why}"
        )


def look(pipeline: Pipeline[Any]) -> list[str]:
    """Returns in words where the pipeline's definition has a dead end, or a stage or a status that nothing leads to."""
    routes, changes = pipeline.routes(), pipeline.changes()
    reached, rest = {pipeline.initial}, [pipeline.initial]
    while rest:
        here = rest.pop()
        found = {target for source, target in changes if source == here} - reached
        reached |= found
        rest += found
    lines = []
    for status, route in sorted(routes.items()):
        if route.final:
            continue
        if route.stage is None and not any(source == status for source, _ in changes):
            lines.append(
                f"status {status} is a dead end: it isn't final, no stage takes it, and no change leads out of it"
            )
        if status not in reached:
            what = f"stage {route.stage} takes {status}" if route.stage else f"there is a status {status}"
            lines.append(f"{what}, which no change leads to from {pipeline.initial}")
    return lines


def refuse(pipeline: Pipeline[Any]) -> None:
    """Raises DefinitionError if there is anything to say of the definition."""
    if lines := look(pipeline):
        raise DefinitionError(f"pipeline {pipeline.name}: {'; '.join(lines)}")


def unattended(conn: psycopg.Connection[Any], pipeline: str | None = None) -> list[Unattended]:
    """Returns the workflows that wait for nothing, of one pipeline or of all.

    In a status that people change without being asked, workflows have no wait. It is left out unless some have waited
    there, or it is a dead end.
    """
    return [Unattended(*row) for row in tuples(conn, SQL["workflows_unattended"], pipeline=pipeline)]
