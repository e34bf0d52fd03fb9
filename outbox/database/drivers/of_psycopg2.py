"""Leads to connections of psycopg2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ...errors import InvalidInput
from ..steps import Statement
from . import spelling
from .alone import lock
from .connection import Door


class Psycopg2(Door):
    """Leads to a connection."""

    def __init__(self, conn: Any) -> None:
        if conn.async_:
            raise InvalidInput("conn", "is an asynchronous connection of psycopg2: pass one without async_=True")
        self._conn = conn
        self._plain = sys.modules["psycopg2.extensions"].cursor  # whatever cursors and rows the connection makes

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        with self._conn.cursor(cursor_factory=self._plain) as cursor:
            cursor.execute(*spelling.named(statement))
            return list(cursor.fetchall()) if cursor.description else []

    def run(self, commands: str) -> None:
        """Runs commands, in one round trip."""
        with self._conn.cursor(cursor_factory=self._plain) as cursor:
            cursor.execute(commands)

    def alone(self) -> AbstractContextManager[object]:
        """Takes the connection's lock."""
        return lock(self._conn)

    def whole(self) -> AbstractContextManager[object]:
        """Opens a transaction in autocommit."""
        commits = self._conn.autocommit and not self._conn.info.transaction_status
        return self._transaction() if commits else nullcontext()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._conn.cursor(cursor_factory=self._plain) as cursor:
            cursor.execute("BEGIN")
            try:
                yield
            except BaseException:
                if not self._conn.closed:
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")
