"""Runs steps on the caller's own connection, sync or async.

What users call in their own transaction (submit, inbox) is written once: a generator that yields statements and is sent
their rows (see database/steps.py). Here nothing is begun, ended or reset: connection and transaction are the caller's.
What the database refuses is raised as the error of ours that it is.
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
    """Returns what the steps return, or on an async connection a coroutine that does."""
    if isinstance(conn, psycopg.AsyncConnection):
        return perform_async(steps, partial(_rows_async, conn))
    if isinstance(conn, psycopg.Connection):
        return drive(conn, steps)
    steps.close()
    raise InvalidInput("conn", f"must be a psycopg connection, sync or async, not {type(conn).__name__}")


def drive(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Returns what the steps return on a connection that is known to be a sync one."""
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
    """Refuses texts that the encoding of the caller's session doesn't have, before any SQL."""
    try:
        yield
    except UnicodeEncodeError as error:
        encoding = conn.info.parameter_status("client_encoding")
        problem = f"{error.object[error.start]!r} can't be sent: the session's client_encoding is {encoding}. Use UTF8"
        raise InvalidInput("text", problem) from None
