"""A transaction that holds the xmin horizon of a database: nothing that dies meanwhile can be removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg


class Horizon:
    """A session whose transaction is open, or not."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    def hold(self, held: bool) -> None:
        """Have it held from now on, or not; what is so already stays as it is."""
        if not held:
            self._conn.rollback()
        elif self._conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._conn.execute("SELECT 1")


@contextmanager
def horizon(dsn: str) -> Iterator[Horizon]:
    """Yield the horizon of one database, not held."""
    with psycopg.connect(dsn) as conn:
        yield Horizon(conn)


def around(lines: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the lines of a series from before it was held, and those from while it was."""
    held = [line for line in lines if line["horizon"]]
    return lines[: lines.index(held[0])] if held else lines, held
