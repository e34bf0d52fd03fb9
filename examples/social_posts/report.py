"""Prints tables of what happened in a run."""

from collections.abc import Iterable
from typing import Any

from psycopg import Connection
from rich.console import Console
from rich.table import Table

STATUSES = """
    SELECT current_status, count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY took), max(took)
    FROM (
        SELECT w.current_status, extract(epoch FROM max(s.at) - min(s.at))::float8 AS took
        FROM outbox.workflow_states AS w
        JOIN outbox.state_changes AS s ON s.workflow_id = w.id
        WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
        GROUP BY w.id, w.current_status
    ) AS ended
    GROUP BY current_status ORDER BY current_status
"""
# Stages are in the order in which posts reach them.
STAGES = """
    SELECT s.stage, count(*), sum(s.attempt), sum(s.attempt - 1), max(s.attempt)
    FROM outbox.workflow_states AS w
    JOIN outbox.state_changes AS s ON s.workflow_id = w.id
    WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s) AND s.stage IS NOT NULL
    GROUP BY s.stage ORDER BY min(s.version), s.stage
"""


Rows = list[tuple[str, str]]


def show(console: Console, conn: Connection[Any], run: str, stats: dict[str, float], kill: Rows) -> None:
    """Prints the tables of one run."""
    statuses = conn.execute(STATUSES, {"run": run}).fetchall()
    console.print(
        table(
            "Posts by status, and how long they took",
            ["status", "posts", "half within", "slowest"],
            [(status, str(n), f"{half:.1f} s", f"{slowest:.1f} s") for status, n, half, slowest in statuses],
        )
    )
    stages = conn.execute(STAGES, {"run": run}).fetchall()
    console.print(
        table(
            "Attempts by stage",
            ["stage", "done", "attempts", "retries", "most for one post"],
            [(stage, *map(str, numbers)) for stage, *numbers in stages],
        )
    )
    console.print(table("How the service answered", ["", ""], world(stats)))
    console.print(table("The kill, and the reviews", ["", ""], kill))


def world(stats: dict[str, float]) -> Rows:
    names = {
        "requests": "requests",
        "429": "too many requests (429)",
        "503": "unavailable (503)",
        "slow": "answered after the caller's timeout",
        "malformed": "answered with half a document",
        "outage": "dropped in the outage",
        "outage_seconds": "seconds of the outage",
        "notifications": "notifications counted",
        "duplicates": "repeated notifications, recognized by key",
    }
    return [(text, f"{stats[name]:g}") for name, text in names.items()]


def table(title: str, columns: list[str], rows: Iterable[tuple[str, ...]]) -> Table:
    made = Table(title=f"\n{title}", title_justify="left", title_style="bold", show_header=any(columns))
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made
