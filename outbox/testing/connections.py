"""Finds the psycopg connection in what a test passes, and uses it without changing what the application sets on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.rows import tuple_row

from ..database.drivers.of_django import Django
from ..database.drivers.of_psycopg import Psycopg, PsycopgAsync
from ..database.drivers.of_sqlalchemy import Sqlalchemy
from ..database.drivers.recognise import door
from ..errors import InvalidInput
from ..texts import printable

_BEGIN = b"SELECT 1"
"""Has psycopg begin the transaction, if none is open. A block would begin one of its own, and commit it."""

Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def psycopg_of(conn: Any) -> Connection:
    """Returns the psycopg connection that this one is, or works on. A session of SQLAlchemy is flushed first.

    Raises InvalidInput if it is one of another driver.
    """
    found: Any = conn
    match door(conn):
        case Psycopg() | PsycopgAsync():
            pass
        case Django():
            conn.ensure_connection()
            found = conn.connection
        case Sqlalchemy():
            if not hasattr(conn, "exec_driver_sql"):
                conn.flush()
                conn = conn.connection()
            found = conn.connection.driver_connection
    if not isinstance(found, psycopg.Connection | psycopg.AsyncConnection):
        told = "must be a connection of psycopg 3, or Django's or a sync one of SQLAlchemy that works on psycopg 3"
        raise InvalidInput("conn", f"{told}, not {type(found).__module__}.{type(found).__qualname__}: pass the DSN")
    return found


@contextmanager
def savepoint(conn: Connection | None) -> Iterator[None]:
    """Opens a savepoint in the caller's transaction. Does nothing without a connection, or with an async one."""
    if not isinstance(conn, psycopg.Connection):
        yield
        return
    require_transaction(conn)
    conn.execute(_BEGIN)
    with plain(conn), conn.transaction():
        yield


@asynccontextmanager
async def savepoint_async(conn: Connection | None) -> AsyncIterator[None]:
    """Does what `savepoint` does with an async connection."""
    if not isinstance(conn, psycopg.AsyncConnection):
        yield
        return
    require_transaction(conn)
    await conn.execute(_BEGIN)
    with plain(conn):
        async with conn.transaction():
            yield


def require_transaction(conn: Connection) -> None:
    """Raises InvalidInput if each statement on this connection would be committed by itself, or can't be run."""
    if conn.pgconn.pipeline_status != PipelineStatus.OFF:
        raise InvalidInput("conn", "is in pipeline mode: leave the block of conn.pipeline() first, or pass the DSN")
    status = conn.info.transaction_status
    if status == TransactionStatus.INERROR:
        raise InvalidInput("conn", "is in a transaction that has failed: roll it back first")
    if conn.autocommit and status == TransactionStatus.IDLE:
        raise InvalidInput(
            "conn", "is in autocommit, and no transaction is open: open one, or pass the DSN to have the work committed"
        )


def require_color(conn: Connection, stage: str, *, is_async: bool) -> None:
    """Raises InvalidInput if the handler of a stage, or a schedule, needs a connection of the other kind."""
    if isinstance(conn, psycopg.AsyncConnection) == is_async:
        return
    here, needed = ("sync", "an async") if is_async else ("async", "a sync")
    raise InvalidInput(
        "conn", f"is {here}, and {printable(stage)} gets a connection that is {needed} one: pass that, or the DSN"
    )


@contextmanager
def plain(conn: Connection) -> Iterator[None]:
    """Makes rows and values on this connection what they are by default, and puts the application's choice back."""
    kept = {
        name: getattr(conn, name) for name in ("row_factory", "cursor_factory", "server_cursor_factory", "_adapters")
    }
    is_async = isinstance(conn, psycopg.AsyncConnection)
    conn.row_factory = tuple_row
    conn.cursor_factory = psycopg.AsyncCursor if is_async else psycopg.Cursor
    conn.server_cursor_factory = psycopg.AsyncServerCursor if is_async else psycopg.ServerCursor
    conn._adapters = None  # made again from psycopg's own when it is next needed
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(conn, name, value)
