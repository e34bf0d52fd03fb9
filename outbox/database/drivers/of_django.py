"""Leads to the connections of Django, by Django's own cursor: what it logs and wraps, it logs and wraps here, too."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...errors import InvalidInput
from ..steps import Statement
from . import spelling
from .connection import Door


class Django(Door):
    """Leads to `connection`, or to one of `connections`."""

    def __init__(self, conn: Any) -> None:
        if conn.vendor != "postgresql":
            raise InvalidInput("conn", f"leads to {conn.vendor}: Outbox's tables are in a Postgres")
        self._conn = conn

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        with self._conn.cursor() as cursor:
            cursor.execute(*spelling.named(statement))
            return list(cursor.fetchall()) if cursor.description else []

    def run(self, commands: str) -> None:
        """Runs commands, in one round trip."""
        with self._conn.cursor() as cursor:
            cursor.execute(commands)

    def whole(self) -> AbstractContextManager[object]:
        """Opens `atomic` if none is open."""
        if not self._conn.get_autocommit():
            return nullcontext()
        transaction: Any = importlib.import_module("django.db.transaction")
        found: AbstractContextManager[object] = transaction.atomic(self._conn.alias)
        return found
