"""Opens each kind of connection that an application may hold: all that tests/kit/drivers.py tests, but its variants.

Each opens one connection, for many transactions. It yields the connection, a call of an empty statement as the
application would send it, and the call that commits. An async connection's calls are awaited.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

NOTHING = "SELECT 1"
Opened = tuple[Any, Callable[[], Any], Callable[[], Any]]


def url(dsn: str, driver: str) -> Any:
    """Returns a DSN as SQLAlchemy's URL. The bench's server may listen on a Unix socket."""
    from sqlalchemy import URL

    at = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    query = {name: at[name] for name in ("host", "port")}
    if driver == "pg8000" and at["host"].startswith("/"):
        query = {"unix_sock": f"{at['host']}/.s.PGSQL.{at['port']}"}
    return URL.create(f"postgresql+{driver}", username=at["user"], database=at["dbname"], query=query)


def executing(conn: Any) -> Callable[[], Any]:
    """Returns the call of an empty statement through a cursor of the DB-API."""

    def call() -> Any:
        with conn.cursor() as cursor:
            cursor.execute(NOTHING)
            return cursor.fetchall()

    return call


@contextmanager
def psycopg_sync(dsn: str) -> Iterator[Opened]:
    with psycopg.connect(dsn) as conn:
        yield conn, executing(conn), conn.commit


@asynccontextmanager
async def psycopg_async(dsn: str) -> AsyncIterator[Opened]:
    async def call() -> Any:
        async with conn.cursor() as cursor:
            await cursor.execute(NOTHING)
            return await cursor.fetchall()

    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        yield conn, call, conn.commit


@contextmanager
def psycopg2_sync(dsn: str) -> Iterator[Opened]:
    import psycopg2

    conn = psycopg2.connect(dsn)
    try:
        yield conn, executing(conn), conn.commit
    finally:
        conn.close()


@asynccontextmanager
async def asyncpg_async(dsn: str) -> AsyncIterator[Opened]:
    import asyncpg

    at = conninfo_to_dict(dsn)
    conn = await asyncpg.connect(host=at["host"], port=at["port"], user=at["user"], database=at["dbname"])
    transaction = conn.transaction()

    async def commit() -> None:
        nonlocal transaction
        await transaction.commit()
        transaction = conn.transaction()
        await transaction.start()

    try:
        await transaction.start()
        yield conn, partial(conn.fetch, NOTHING), commit
    finally:
        await conn.close()


@contextmanager
def django_connection(dsn: str) -> Iterator[Opened]:
    import django
    from django.conf import settings
    from django.db import connection

    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # the loop is the bench's own, and does nothing meanwhile
    if not settings.configured:
        settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}})
        django.setup()
    at = conninfo_to_dict(dsn)
    connection.settings_dict.update(NAME=at["dbname"], USER=at["user"], HOST=at["host"], PORT=at["port"])
    connection.set_autocommit(False)
    try:
        yield connection, executing(connection), connection.commit
    finally:
        connection.close()


@contextmanager
def sqlalchemy(kind: str, driver: str, dsn: str) -> Iterator[Opened]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session

    engine = create_engine(url(dsn, driver))
    try:
        with Session(engine) if kind == "Session" else engine.connect() as conn:
            yield conn, lambda: conn.execute(text(NOTHING)).fetchall(), conn.commit
    finally:
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_async(kind: str, driver: str, dsn: str) -> AsyncIterator[Opened]:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(url(dsn, driver))

    async def call() -> Any:
        return (await conn.execute(text(NOTHING))).fetchall()

    try:
        async with AsyncSession(engine) if kind == "AsyncSession" else engine.connect() as conn:
            yield conn, call, conn.commit
    finally:
        await engine.dispose()


FIRST = "psycopg"
"""The kind beside which the others are shown."""

Opening = Callable[[str], AbstractContextManager[Opened] | AbstractAsyncContextManager[Opened]]
DOORS: dict[str, Opening] = {
    FIRST: psycopg_sync,
    "psycopg, async": psycopg_async,
    "psycopg2": psycopg2_sync,
    "asyncpg": asyncpg_async,
    "Django": django_connection,
    **{
        f"SQLAlchemy {kind}, {driver}": partial(sqlalchemy, kind, driver)
        for kind in ("Connection", "Session")
        for driver in ("psycopg", "psycopg2", "pg8000")
    },
    **{
        f"SQLAlchemy {kind}, {driver}": partial(sqlalchemy_async, kind, driver)
        for kind in ("AsyncConnection", "AsyncSession")
        for driver in ("psycopg", "asyncpg")
    },
}
