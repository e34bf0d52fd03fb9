"""Makes a connection of any driver look like psycopg's sync one to the code that migrates and deploys.

That code asks little of a connection: statements and their rows, blocks that are transactions or savepoints, and the
version of the server. It tells errors apart by psycopg's classes, so those of other drivers are raised as psycopg's of
the same SQLSTATE within `borrow`, and leave it as the driver's own.

What is awaited on an async connection is awaited in its event loop, while the code runs in a thread beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar, cast

import psycopg

from ..refusals import sqlstate_of
from ..steps import Statement
from .connection import AsyncDoor, Door
from .recognise import door

T = TypeVar("T")
Conn = psycopg.Connection[Any]


def borrow(conn: Any, function: Callable[[Conn], T]) -> T | Coroutine[Any, Any, T]:
    """Calls a function with a connection of any driver, as if it were psycopg's sync one, and returns its result.

    On an async connection, it returns a coroutine that does so.
    """
    if isinstance(conn, psycopg.Connection):
        return function(conn)
    found = door(conn)
    if isinstance(found, AsyncDoor):
        return _in_thread(found, function)
    return _called(found, function)


def _called(found: Door, function: Callable[[Conn], T]) -> T:
    try:
        return function(cast("Conn", Borrowed(found)))
    except psycopg.Error as error:
        if isinstance(original := getattr(error, "of_driver", None), BaseException):
            raise original  # noqa: B904 - it is the cause of this one
        raise


async def _in_thread(found: AsyncDoor, function: Callable[[Conn], T]) -> T:
    return await asyncio.to_thread(_called, _Awaited(found, asyncio.get_running_loop()), function)


class Borrowed:
    """A connection of any driver. `execute` returns the connection itself, which then has the rows."""

    def __init__(self, found: Door) -> None:
        self._door = found
        self._rows: list[Any] = []

    @property
    def info(self) -> SimpleNamespace:
        """The server's version, as psycopg has it."""
        ((version,),) = self.execute("SELECT current_setting('server_version_num')::integer", {})
        return SimpleNamespace(server_version=version)

    def execute(
        self, query: bytes | str, params: Mapping[str, Any] | None = None, *, prepare: bool | None = None
    ) -> Borrowed:
        """Runs a statement; if it is not to be prepared, a script of several, which has no rows."""
        sql = query if isinstance(query, bytes) else query.encode()
        with _as_psycopgs():
            if prepare is False:
                self._rows = []
                self._door.run(sql.decode())
            else:
                sql = sql if params is not None else sql.replace(b"%", b"%%")
                self._rows = self._door.rows((sql, dict(params or {})))
        return self

    def cursor(self, **_: Any) -> Borrowed:
        """Returns itself: rows are tuples anyhow."""
        return self

    def fetchall(self) -> list[Any]:
        """Returns the rows of the last statement."""
        return [tuple(row) for row in self._rows]

    def fetchone(self) -> Any:
        """Returns the first row of the last statement, or None."""
        return tuple(self._rows[0]) if self._rows else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchall())

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Opens a transaction if there is none, and in it a savepoint, to which an error goes back."""
        with self._door.whole():
            self.execute("SAVEPOINT outbox_block")
            try:
                yield
            except BaseException:
                with suppress(Exception):  # the connection may be lost
                    self.execute("ROLLBACK TO SAVEPOINT outbox_block")
                    self.execute("RELEASE SAVEPOINT outbox_block")
                raise
            self.execute("RELEASE SAVEPOINT outbox_block")


@contextmanager
def _as_psycopgs() -> Iterator[None]:
    """Raises a driver's error as psycopg's of the same SQLSTATE, which has the driver's as `of_driver`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, psycopg.Error) or (sqlstate := sqlstate_of(error)) is None:
            raise
        try:
            kind = psycopg.errors.lookup(sqlstate)
        except KeyError:
            kind = psycopg.DatabaseError
        raised = kind(str(error))
        raised.of_driver = error  # type: ignore[attr-defined]
        raise raised from error


class _Awaited(Door):
    """Leads from a thread to an async connection in its event loop."""

    def __init__(self, found: AsyncDoor, loop: asyncio.AbstractEventLoop) -> None:
        self._door, self._loop = found, loop

    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows."""
        return self._wait(self._door.rows(statement))

    def run(self, commands: str) -> None:
        """Runs commands without values."""
        self._wait(self._door.run(commands))

    def whole(self) -> AbstractContextManager[object]:
        """Opens a transaction if none is open."""
        return _Block(self._door.whole(), self._wait)

    def _wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(awaited, self._loop).result()


class _Block(AbstractContextManager[object]):
    """A block of an async connection, entered from a thread."""

    def __init__(self, block: Any, wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._block, self._wait = block, wait

    def __enter__(self) -> object:
        return self._wait(_awaited(self._block.__aenter__()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        left: bool | None = self._wait(_awaited(self._block.__aexit__(kind, error, trace)))
        return left


async def _awaited(value: Any) -> Any:
    return await value
