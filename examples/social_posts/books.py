"""Checks the books of a run: what must be true at the end, no matter what happened during the run."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from psycopg import Connection

SHOWN = 3  # how many broken entries a check names; it only counts the others


@dataclass(frozen=True)
class Check:
    """A promise, and the entries that break it."""

    promise: str
    broken: list[str]

    @property
    def right(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        if self.right:
            return f"✔ {self.promise}"
        more = f" … and {len(self.broken) - SHOWN} more" if len(self.broken) > SHOWN else ""
        return f"✘ {self.promise}\n    {'; '.join(self.broken[:SHOWN])}{more}"


def check_books(conn: Connection[Any], run: str, submitted: int, file: str = "books.sql") -> list[Check]:
    """Checks every promise of the file for the posts whose entity id begins with `run`."""
    checks = []
    for promise, query in promises(file):
        rows = conn.execute(query, {"run": run, "submitted": submitted}).fetchall()
        checks.append(Check(promise, [f"{entity}: {wrong}" for entity, wrong in rows]))
    return checks


def promises(file: str) -> list[tuple[str, str]]:
    """Returns the statements of the file, each with the promise that it checks."""
    text = files(__package__).joinpath(file).read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in text.split("-- promise: ")[1:])
    return [(promise, query) for promise, _, query in parts]
