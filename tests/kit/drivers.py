"""Opens connections of each kind that an application may hold, in a transaction that the application ends.

`KINDS` has them by name: each is a context manager that takes a DSN and yields the connection and a function that makes
a savepoint. An error that leaves the block rolls the transaction back, as in the driver's own documentation.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import asyncpg
import django
import psycopg
import psycopg2
import psycopg2.extras
import sqlalchemy
from django.db import connections, transaction
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from kit import django_project

Opened = tuple[Any, Callable[[], Any]]


class Held:
    """A connection that an application holds, in a transaction."""

    def __init__(self, opened: Opened, runner: asyncio.Runner | None) -> None:
        self.conn, self._savepoint = opened
        self._runner = runner

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function; its result is awaited exactly if calls on the connection are."""
        found = function(*args, **kwargs)
        assert inspect.iscoroutine(found) == (self._runner is not None)
        return self._runner.run(found) if self._runner is not None else found

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Makes a savepoint, to which an error that leaves the block goes back."""
        with _entered(self._savepoint(), self._runner):
            yield


@contextmanager
def held(kind: str, dsn: str) -> Iterator[Held]:
    """Opens a connection of a kind, in a transaction that is committed unless the block raises."""
    opening = KINDS[kind](dsn)
    if hasattr(opening, "__enter__"):
        with opening as opened:
            yield Held(opened, None)
        return
    with asyncio.Runner() as runner, _entered(opening, runner) as opened:
        yield Held(opened, runner)


@contextmanager
def _entered(manager: Any, runner: asyncio.Runner | None) -> Iterator[Any]:
    """Enters a manager, sync or async."""
    if runner is None:
        with manager as value:
            yield value
        return
    value = runner.run(_awaited(manager.__aenter__()))
    try:
        yield value
    except BaseException as error:
        if not runner.run(_awaited(manager.__aexit__(type(error), error, error.__traceback__))):
            raise
    else:
        runner.run(_awaited(manager.__aexit__(None, None, None)))


async def _awaited(value: Any) -> Any:
    return await value


def url(dsn: str, driver: str) -> str:
    """Returns a DSN as SQLAlchemy writes it."""
    at = conninfo_to_dict(dsn)
    return f"postgresql+{driver}://{at['user']}@{at['host']}:{at['port']}/{at['dbname']}"


@contextmanager
def psycopg_connection(dsn: str) -> Iterator[Opened]:
    with psycopg.connect(dsn, row_factory=dict_row) as conn:
        yield conn, conn.transaction


@asynccontextmanager
async def psycopg_async(dsn: str) -> AsyncIterator[Opened]:
    async with await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row) as conn:
        yield conn, conn.transaction


@contextmanager
def psycopg_pipeline(dsn: str) -> Iterator[Opened]:
    with psycopg.connect(dsn) as conn, conn.pipeline():
        yield conn, conn.transaction


@asynccontextmanager
async def psycopg_async_pipeline(dsn: str) -> AsyncIterator[Opened]:
    async with await psycopg.AsyncConnection.connect(dsn) as conn, conn.pipeline():
        yield conn, conn.transaction


@contextmanager
def psycopg2_connection(dsn: str) -> Iterator[Opened]:
    conn = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)
    try:
        with conn:
            yield conn, partial(_savepoint, conn)
    finally:
        conn.close()


@contextmanager
def _savepoint(conn: Any) -> Iterator[None]:
    with conn.cursor() as cursor:
        cursor.execute("SAVEPOINT here")
        try:
            yield
        except BaseException:
            cursor.execute("ROLLBACK TO here")
            raise


@contextmanager
def sqlalchemy_connection(driver: str, dsn: str) -> Iterator[Opened]:
    with sqlalchemy.create_engine(url(dsn, driver), poolclass=NullPool).begin() as conn:
        yield conn, conn.begin_nested


@contextmanager
def sqlalchemy_session(driver: str, dsn: str) -> Iterator[Opened]:
    with Session(sqlalchemy.create_engine(url(dsn, driver), poolclass=NullPool)) as session, session.begin():
        yield session, session.begin_nested


@contextmanager
def sqlalchemy_scoped(driver: str, dsn: str) -> Iterator[Opened]:
    scoped = scoped_session(sessionmaker(sqlalchemy.create_engine(url(dsn, driver), poolclass=NullPool)))
    try:
        with scoped.begin():
            yield scoped, scoped.begin_nested
    finally:
        scoped.remove()


@asynccontextmanager
async def sqlalchemy_async(driver: str, dsn: str) -> AsyncIterator[Opened]:
    async with create_async_engine(url(dsn, driver), poolclass=NullPool).begin() as conn:
        yield conn, conn.begin_nested


@asynccontextmanager
async def sqlalchemy_async_session(driver: str, dsn: str) -> AsyncIterator[Opened]:
    engine = create_async_engine(url(dsn, driver), poolclass=NullPool)
    async with AsyncSession(engine) as session, session.begin():
        yield session, session.begin_nested


@asynccontextmanager
async def sqlalchemy_async_scoped(driver: str, dsn: str) -> AsyncIterator[Opened]:
    engine = create_async_engine(url(dsn, driver), poolclass=NullPool)
    scoped = async_scoped_session(async_sessionmaker(engine), lambda: None)
    try:
        async with scoped.begin():
            yield scoped, scoped.begin_nested
    finally:
        await scoped.remove()


@asynccontextmanager
async def asyncpg_connection(dsn: str) -> AsyncIterator[Opened]:
    conn = await asyncpg.connect(url(dsn, "asyncpg").replace("+asyncpg", ""))
    try:
        async with conn.transaction():
            yield conn, conn.transaction
    finally:
        await conn.close()


@asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncIterator[Opened]:
    async with (
        asyncpg.create_pool(url(dsn, "asyncpg").replace("+asyncpg", ""), min_size=1, max_size=1) as pool,
        pool.acquire() as conn,
        conn.transaction(),
    ):
        yield conn, conn.transaction


@contextmanager
def django_connection(alias: str, dsn: str) -> Iterator[Opened]:
    with django_project.database(dsn, alias), transaction.atomic(alias):
        conn = django.db.connection if alias == "default" else connections[alias]
        yield conn, partial(transaction.atomic, alias)


KINDS: dict[str, Callable[[str], AbstractContextManager[Opened] | Any]] = {
    "psycopg": psycopg_connection,
    "psycopg async": psycopg_async,
    "psycopg pipeline": psycopg_pipeline,
    "psycopg async pipeline": psycopg_async_pipeline,
    "psycopg2": psycopg2_connection,
    "asyncpg": asyncpg_connection,
    "asyncpg pool": asyncpg_pool,
    "django": partial(django_connection, "default"),
    "django other": partial(django_connection, "other"),
    **{
        f"sqlalchemy {name} {driver}": partial(begin, driver)
        for name, begin in {
            "connection": sqlalchemy_connection,
            "session": sqlalchemy_session,
            "scoped": sqlalchemy_scoped,
        }.items()
        for driver in ("psycopg", "psycopg2", "pg8000")
        if (name, driver) not in (("scoped", "psycopg2"), ("scoped", "pg8000"), ("connection", "pg8000"))
    },
    **{
        f"sqlalchemy {name} {driver}": partial(begin, driver)
        for name, begin in {
            "async connection": sqlalchemy_async,
            "async session": sqlalchemy_async_session,
            "async scoped": sqlalchemy_async_scoped,
        }.items()
        for driver in ("asyncpg", "psycopg_async")
        if (name, driver) != ("async scoped", "psycopg_async")
    },
}
