"""Leads to connections of psycopg, sync and async."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from ...errors import InvalidInput
from ..steps import Statement
from .alone import async_lock, lock
from .connection import AsyncDoor, Door


class Psycopg(Door):
    """Leads to a Connection."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        _require_texts(self._conn)
        with psycopg.Cursor(self._conn, row_factory=tuple_row) as cursor:
            cursor.execute(*statement)
            try:
                return cursor.fetchall() if cursor.description or _is_later(self._conn) else []
            except psycopg.ProgrammingError:
                if cursor.pgresult is None:
                    raise
                return []  # a statement in pipeline mode that returns none

    def run(self, commands: str) -> None:
        """Runs commands, in one round trip."""
        self._conn.execute(commands.encode(), prepare=False)

    def alone(self) -> AbstractContextManager[object]:
        """Takes the connection's lock."""
        return lock(self._conn)

    def whole(self) -> AbstractContextManager[object]:
        """Opens a transaction in autocommit."""
        return self._conn.transaction() if _commits(self._conn) else nullcontext()


class PsycopgAsync(AsyncDoor):
    """Leads to an AsyncConnection."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self._conn = conn

    async def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        _require_texts(self._conn)
        async with psycopg.AsyncCursor(self._conn, row_factory=tuple_row) as cursor:
            await cursor.execute(*statement)
            try:
                return await cursor.fetchall() if cursor.description or _is_later(self._conn) else []
            except psycopg.ProgrammingError:
                if cursor.pgresult is None:
                    raise
                return []  # a statement in pipeline mode that returns none

    async def run(self, commands: str) -> None:
        """Runs commands, in one round trip."""
        await self._conn.execute(commands.encode(), prepare=False)

    def alone(self) -> AbstractAsyncContextManager[object]:
        """Takes the connection's lock."""
        return async_lock(self._conn)

    def whole(self) -> AbstractAsyncContextManager[object]:
        """Opens a transaction in autocommit."""
        return self._conn.transaction() if _commits(self._conn) else nullcontext()


def _commits(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE


def _is_later(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether an answer is there only once it is fetched: in pipeline mode."""
    return conn.pgconn.pipeline_status != PipelineStatus.OFF


def _require_texts(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Raises InvalidInput for a session in which psycopg reads texts as bytes."""
    if conn.pgconn.parameter_status(b"client_encoding") == b"SQL_ASCII":
        told = "has the client_encoding SQL_ASCII, in which psycopg reads texts as bytes: connect with UTF8"
        raise InvalidInput("conn", told)
