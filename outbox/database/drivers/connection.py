"""Defines which connections an application may pass, and what a door to one of them does.

The types are protocols, so that no driver is imported. They say what a type checker needs to tell the connections
apart; `recognise` finds out at run time what a connection is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, Protocol

import psycopg

from ..steps import Statement


class AsyncpgConnection(Protocol):
    """A connection of asyncpg, or of its pool."""

    def is_in_transaction(self) -> bool: ...
    def fetch(self, query: str, *args: Any) -> Coroutine[Any, Any, Any]: ...


class AsyncSqlalchemy(Protocol):
    """An AsyncConnection or AsyncSession of SQLAlchemy."""

    def run_sync(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]: ...


class AsyncSqlalchemyScoped(Protocol):
    """An async_scoped_session of SQLAlchemy."""

    def flush(self) -> Coroutine[Any, Any, None]: ...
    def remove(self) -> Coroutine[Any, Any, None]: ...


class SqlalchemyConnection(Protocol):
    """A Connection of SQLAlchemy."""

    def exec_driver_sql(self, statement: str, parameters: Any = None, /) -> Any: ...


class SqlalchemySession(Protocol):
    """A Session of SQLAlchemy or SQLModel, or a scoped_session."""

    def flush(self) -> None: ...
    def connection(self) -> Any: ...


class DbapiConnection(Protocol):
    """A connection of psycopg2, or the `connection` of Django."""

    def cursor(self) -> Any: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...


AsyncConn = psycopg.AsyncConnection[Any] | AsyncpgConnection | AsyncSqlalchemy | AsyncSqlalchemyScoped
"""Each call on one of these is awaited."""

SyncConn = psycopg.Connection[Any] | SqlalchemyConnection | SqlalchemySession | DbapiConnection
"""Each call on one of these returns its result."""


class Door(ABC):
    """Leads to a connection of the caller's whose calls return their results."""

    @abstractmethod
    def rows(self, statement: Statement) -> list[Any]:
        """Runs a statement, and returns its rows as sequences, whatever the connection makes of rows otherwise."""

    @abstractmethod
    def run(self, commands: str) -> None:
        """Runs one or more commands that have no values. What they return is left."""

    def alone(self) -> AbstractContextManager[object]:
        """Keeps other threads' calls on the connection out of this one, where the driver would let them in."""
        return nullcontext()

    @abstractmethod
    def whole(self) -> AbstractContextManager[object]:
        """Makes several statements one transaction, if the connection would commit each of them by itself."""


class AsyncDoor(ABC):
    """Leads to a connection of the caller's whose calls are awaited."""

    @abstractmethod
    async def rows(self, statement: Statement) -> list[Any]:
        """Does what `Door.rows` does."""

    @abstractmethod
    async def run(self, commands: str) -> None:
        """Does what `Door.run` does."""

    def alone(self) -> AbstractAsyncContextManager[object]:
        """Keeps other tasks' calls on the connection out of this one, where the driver would let them in."""
        return nullcontext()

    @abstractmethod
    def whole(self) -> AbstractAsyncContextManager[object]:
        """Does what `Door.whole` does."""
