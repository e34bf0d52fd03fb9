"""Leads to connections and sessions of SQLAlchemy, by its own execute: its events, its transaction, its driver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from ...errors import InvalidInput
from ..steps import Statement
from . import spelling
from .connection import AsyncDoor, Door

_SPELLINGS: dict[str, Callable[[Statement], tuple[str, Any]]] = {
    "pyformat": spelling.named,
    "numeric_dollar": spelling.numbered,
    "format": spelling.listed,
}


class Sqlalchemy(Door):
    """Leads to a Connection or a Session. What the session holds back is flushed first."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        connection = self._connection()
        result = connection.exec_driver_sql(*_SPELLINGS[connection.dialect.paramstyle](statement))
        return list(result.fetchall()) if result.returns_rows else []

    def run(self, commands: str) -> None:
        """Runs commands, each by itself: asyncpg and pg8000 prepare what SQLAlchemy executes."""
        connection = self._connection()
        for command in spelling.commands(commands):
            connection.exec_driver_sql(command, execution_options={"no_parameters": True}).close()

    def whole(self) -> AbstractContextManager[object]:
        """Refuses a connection in autocommit, unless a transaction was begun on it otherwise, as a step's is."""
        pooled = self._connection().connection
        begun = getattr(getattr(pooled.driver_connection, "info", None), "transaction_status", 0)
        if getattr(pooled.dbapi_connection, "autocommit", False) and not begun:
            problem = "is in autocommit, and this takes several statements: take isolation_level='AUTOCOMMIT' away"
            raise InvalidInput("conn", problem)
        return nullcontext()

    def _connection(self) -> Any:
        connection = self._conn
        if not hasattr(connection, "exec_driver_sql"):
            self._conn.flush()
            connection = self._conn.connection()
        dialect = connection.dialect
        if dialect.name != "postgresql":
            raise InvalidInput("conn", f"leads to {dialect.name}: Outbox's tables are in a Postgres")
        if dialect.paramstyle not in _SPELLINGS:
            problem = f"uses {dialect.driver} with paramstyle {dialect.paramstyle!r}"
            raise InvalidInput("conn", f"{problem}: use psycopg, psycopg2 or asyncpg, with the paramstyle they have")
        return connection


class SqlalchemyAsync(AsyncDoor):
    """Leads to an AsyncConnection or an AsyncSession."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn

    async def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        found: list[Any] = await self._conn.run_sync(lambda conn: Sqlalchemy(conn).rows(statement))
        return found

    async def run(self, commands: str) -> None:
        """Runs commands, each by itself."""
        await self._conn.run_sync(lambda conn: Sqlalchemy(conn).run(commands))

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[None]:
        """Refuses a connection in autocommit."""
        await self._conn.run_sync(lambda conn: Sqlalchemy(conn).whole())
        yield
