"""Leads to connections and sessions of SQLAlchemy, by its own execute: its events, its transaction, its driver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any

from ...errors import InvalidInput
from ..steps import Statement
from . import spelling
from .connection import AsyncDoor, Door

_SPELLINGS: dict[str, Callable[[Statement], tuple[str, Any]]] = {
    "pyformat": spelling.named,
    "numeric_dollar": lambda statement: _as_tuple(spelling.numbered(statement)),
    "format": lambda statement: _as_tuple(spelling.listed(statement)),
}


class Sqlalchemy(Door):
    """Leads to a Connection or a Session. What the session holds back is flushed first."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        connection = self._connection()
        dialect = connection.dialect
        if dialect.name != "postgresql":
            raise InvalidInput("conn", f"leads to {dialect.name}: Outbox's tables are in a Postgres")
        if dialect.paramstyle not in _SPELLINGS:
            raise InvalidInput("conn", f"uses {dialect.driver}: use psycopg, psycopg2 or asyncpg")
        return list(connection.exec_driver_sql(*_SPELLINGS[dialect.paramstyle](statement)).fetchall())

    def whole(self) -> AbstractContextManager[object]:
        """Refuses a connection in autocommit."""
        if getattr(self._connection().connection.dbapi_connection, "autocommit", False):
            problem = "is in autocommit, and this takes several statements: take isolation_level='AUTOCOMMIT' away"
            raise InvalidInput("conn", problem)
        return nullcontext()

    def _connection(self) -> Any:
        if hasattr(self._conn, "exec_driver_sql"):
            return self._conn
        self._conn.flush()
        return self._conn.connection()


class SqlalchemyAsync(AsyncDoor):
    """Leads to an AsyncConnection or an AsyncSession."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        found: list[Any] = await self._conn.run_sync(lambda conn: Sqlalchemy(conn).rows(statement))
        return found

    def whole(self) -> AbstractAsyncContextManager[object]:
        """Refuses a connection in autocommit."""
        return _Whole(self._conn)


class _Whole(AbstractAsyncContextManager[None]):
    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def __aenter__(self) -> None:
        await self._conn.run_sync(lambda conn: Sqlalchemy(conn).whole())

    async def __aexit__(self, *_: object) -> None:
        return None


def _as_tuple(spelled: tuple[str, list[str | None]]) -> tuple[str, tuple[str | None, ...]]:
    text, values = spelled
    return text, tuple(values)
