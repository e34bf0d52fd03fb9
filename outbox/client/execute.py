"""Runs steps on the caller's own connection, sync or async, of any driver.

Each call that users make in their own transaction (submit, inbox) is written once: as a generator that yields
statements and receives their rows (see database/steps.py). Connection and transaction are the caller's: nothing is
begun, ended or reset here, but for steps that must be one transaction, on a connection that has none. If the database
refuses a statement, the matching error of Outbox is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import psycopg

from ..database.drivers.connection import AsyncDoor, Door
from ..database.drivers.recognise import door
from ..database.refusals import raised_as_ours
from ..database.steps import Statement, perform, perform_async
from ..errors import InvalidInput

T = TypeVar("T")
Steps = Generator[Statement, list[Any], T]


def execute(conn: Any, steps: Steps[T], *, whole: bool = False) -> T | Coroutine[Any, Any, T]:
    """Runs the steps and returns their result; on an async connection, returns a coroutine that does so.

    `whole`: the steps write, or read what they wrote, in several statements. On a connection in autocommit they are one
    transaction.
    """
    try:
        found = door(conn)
    except BaseException:
        steps.close()
        raise
    return _run_async(found, steps, whole) if isinstance(found, AsyncDoor) else _run(found, steps, whole)


def drive(conn: psycopg.Connection[Any], steps: Steps[T]) -> T:
    """Runs the steps on a connection of our own, and returns their result."""
    found = door(conn)
    assert isinstance(found, Door)
    return _run(found, steps, whole=False)


def taking(found: Door) -> Callable[[Statement], list[Any]]:
    """Returns what takes a statement and returns its rows. The database's refusals are raised as our errors."""

    def take(statement: Statement) -> list[Any]:
        with raised_as_ours(), _encodable():
            return found.rows(statement)

    return take


def taking_async(found: AsyncDoor) -> Callable[[Statement], Coroutine[Any, Any, list[Any]]]:
    """Does what `taking` does, async."""

    async def take(statement: Statement) -> list[Any]:
        with raised_as_ours(), _encodable():
            return await found.rows(statement)

    return take


def _run(found: Door, steps: Steps[T], whole: bool) -> T:
    take = taking(found)
    with found.alone(), found.whole() if whole else nullcontext():
        return perform(steps, take)


async def _run_async(found: AsyncDoor, steps: Steps[T], whole: bool) -> T:
    take = taking_async(found)
    async with found.alone(), found.whole() if whole else nullcontext():
        return await perform_async(steps, take)


@contextmanager
def _encodable() -> Iterator[None]:
    """Raises InvalidInput, before any SQL, for text that the encoding of the caller's session can't represent."""
    try:
        yield
    except UnicodeEncodeError as error:
        what = error.object[error.start]
        problem = f"{what!r} can't be sent: the session's client_encoding is {error.encoding}. Use UTF8"
        raise InvalidInput("text", problem) from None
