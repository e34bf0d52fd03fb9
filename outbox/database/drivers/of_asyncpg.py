"""Leads to connections of asyncpg, and to those that its pool lends."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from ..steps import Statement
from . import spelling
from .connection import AsyncDoor


class Asyncpg(AsyncDoor):
    """Leads to a Connection."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self._plain = sys.modules["asyncpg"].Record

    async def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        text, values = spelling.numbered(statement)
        return list(await self._conn.fetch(text, *values, record_class=self._plain))

    async def run(self, commands: str) -> None:
        """Runs commands, in one round trip."""
        await self._conn.execute(commands)

    def whole(self) -> AbstractAsyncContextManager[object]:
        """Opens a transaction if none is open."""
        found: AbstractAsyncContextManager[object] = (
            nullcontext() if self._conn.is_in_transaction() else self._conn.transaction()
        )
        return found
