"""Holds the xmin horizon of a database with an open transaction: VACUUM can't remove rows that die during it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg


class Horizon:
    """A session that can keep a transaction open, which holds the horizon."""

    def __init__(self, conn: psycopg.Connection) -> None:
        self._conn = conn

    def hold(self, held: bool) -> None:
        """Holds the horizon from now on, or releases it. Does nothing if it is already so."""
        if not held:
            self._conn.rollback()
        elif self._conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self._conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._conn.execute("SELECT 1")


@contextmanager
def horizon(dsn: str) -> Iterator[Horizon]:
    """Yields the horizon of one database, not held."""
    with psycopg.connect(dsn) as conn:
        yield Horizon(conn)


def around(lines: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Returns the lines of a series from before the horizon was held, and those from while it was held."""
    held = [line for line in lines if line["horizon"]]
    return lines[: lines.index(held[0])] if held else lines, held
