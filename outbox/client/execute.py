"""Runs steps on the caller's own connection, sync or async: a generator of statements, and two shells.

What users call in their own transaction (submit, inbox) is written once: it yields statements and is sent their rows.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from ..errors import InvalidInput

T = TypeVar("T")
Steps = Generator[tuple[bytes, dict[str, Any]], list[Any], T]


def execute(conn: Any, steps: Steps[T]) -> T | Coroutine[Any, Any, T]:
    """Return what the steps return, or on an async connection a coroutine that does."""
    if isinstance(conn, psycopg.AsyncConnection):
        return _drive_async(conn, steps)
    if isinstance(conn, psycopg.Connection):
        return drive(conn, steps)
    steps.close()
    raise InvalidInput("conn", f"must be a psycopg connection, sync or async, not {type(conn).__name__}")


def drive(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """The same for those who know that the connection is a sync one."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        try:
            statement, params = next(steps)
            while True:
                statement, params = steps.send(cursor.execute(statement, params).fetchall())
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


async def _drive_async(conn: psycopg.AsyncConnection[Any], steps: Steps[T]) -> T:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        try:
            statement, params = next(steps)
            while True:
                await cursor.execute(statement, params)
                statement, params = steps.send(await cursor.fetchall())
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
