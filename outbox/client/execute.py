"""Runs steps on the caller's own connection, sync or async.

Each call that users make in their own transaction (submit, inbox) is written once: as a generator that yields
statements and receives their rows (see database/steps.py). This module begins, ends and resets nothing: connection and
transaction are the caller's. If the database refuses a statement, the matching error of Outbox is raised.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from ..database.refusals import raised_as_ours
from ..database.steps import Statement, perform, perform_async
from ..errors import InvalidInput

T = TypeVar("T")
Steps = Generator[Statement, list[Any], T]


def execute(conn: Any, steps: Steps[T]) -> T | Coroutine[Any, Any, T]:
    """Runs the steps and returns their result; on an async connection, returns a coroutine that does so."""
    if isinstance(conn, psycopg.AsyncConnection):
        return perform_async(steps, partial(_rows_async, conn))
    if isinstance(conn, psycopg.Connection):
        return drive(conn, steps)
    steps.close()
    raise InvalidInput("conn", f"must be a psycopg connection, sync or async, not {type(conn).__name__}")


def drive(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Runs the steps on a sync connection, and returns their result."""
    return perform(steps, partial(_rows, conn))


def _rows(conn: psycopg.Connection[Any], statement: Statement) -> list[Any]:
    with raised_as_ours(), _encodable(conn), psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
        return cursor.execute(*statement).fetchall()


async def _rows_async(conn: psycopg.AsyncConnection[Any], statement: Statement) -> list[Any]:
    with raised_as_ours(), _encodable(conn):
        async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
            await cursor.execute(*statement)
            return await cursor.fetchall()


@contextmanager
def _encodable(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> Iterator[None]:
    """Raises InvalidInput, before any SQL, for text that the encoding of the caller's session can't represent."""
    try:
        yield
    except UnicodeEncodeError as error:
        encoding = conn.info.parameter_status("client_encoding")
        problem = f"{error.object[error.start]!r} can't be sent: the session's client_encoding is {encoding}. Use UTF8"
        raise InvalidInput("text", problem) from None
