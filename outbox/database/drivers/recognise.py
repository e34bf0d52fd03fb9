"""Recognises the connections that applications pass, by the names of their classes: no driver is imported."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, cast

from ...errors import InvalidInput
from .connection import AsyncDoor, Door
from .of_asyncpg import Asyncpg
from .of_django import Django
from .of_psycopg import Psycopg, PsycopgAsync
from .of_psycopg2 import Psycopg2
from .of_sqlalchemy import Sqlalchemy, SqlalchemyAsync

_DOORS: dict[str, Callable[[Any], Door | AsyncDoor]] = {
    "psycopg.Connection": Psycopg,
    "psycopg2.extensions.connection": Psycopg2,
    "sqlalchemy.engine.base.Connection": Sqlalchemy,
    "sqlalchemy.orm.session.Session": Sqlalchemy,
    "sqlalchemy.orm.scoping.scoped_session": Sqlalchemy,
    "django.db.backends.base.base.BaseDatabaseWrapper": Django,
    "django.utils.connection.ConnectionProxy": Django,
    "psycopg.AsyncConnection": PsycopgAsync,
    "asyncpg.connection.Connection": Asyncpg,
    "asyncpg.pool.PoolConnectionProxy": Asyncpg,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": SqlalchemyAsync,
    "sqlalchemy.ext.asyncio.session.AsyncSession": SqlalchemyAsync,
    "sqlalchemy.ext.asyncio.scoping.async_scoped_session": lambda scoped: SqlalchemyAsync(scoped()),
}
_INSTEAD = {
    "psycopg_pool": "a pool: pass a connection of it, as in `with pool.connection() as conn`",
    "asyncpg.pool.Pool": "a pool: pass a connection of it, as in `async with pool.acquire() as conn`",
    "psycopg2.pool": "a pool: pass a connection of it, as `pool.getconn()` returns",
    "psycopg.Cursor": "a cursor: pass its connection",
    "psycopg.AsyncCursor": "a cursor: pass its connection",
    "psycopg2.extensions.cursor": "a cursor: pass its connection",
    "django.db.backends.utils.CursorWrapper": "a cursor: pass `django.db.connection`",
    "django.utils.connection.BaseConnectionHandler": "a set of connections: pass one, as in `connections['default']`",
    "sqlalchemy.engine.base.Engine": "an engine: pass a connection of it, as in `with engine.begin() as conn`",
    "sqlalchemy.ext.asyncio.engine.AsyncEngine": (
        "an engine: pass a connection of it, as in `async with engine.begin() as conn`"
    ),
    "sqlalchemy.orm.session.sessionmaker": "a maker of sessions: pass a session, as in `with Session() as session`",
    "sqlalchemy.ext.asyncio.session.async_sessionmaker": (
        "a maker of sessions: pass a session, as in `async with Session() as session`"
    ),
    "sqlalchemy.orm.session.SessionTransaction": "a transaction: pass its session",
    "sqlalchemy.engine.base.Transaction": "a transaction: pass its connection",
    "sqlalchemy.pool": "a connection of SQLAlchemy's pool: pass the Connection or the Session",
    "builtins.str": "a DSN: pass a connection",
}


def door(conn: Any) -> Door | AsyncDoor:
    """Returns the door to a connection. Raises InvalidInput, which says what to pass instead, if it isn't one."""
    found, problem = _kind(cast("Hashable", type(conn)))
    if found is None:
        raise InvalidInput("conn", problem)
    return found(conn)


@cache
def _kind(given: Any) -> tuple[Callable[[Any], Door | AsyncDoor] | None, str]:
    names = [f"{each.__module__}.{each.__qualname__}" for each in given.__mro__]
    for name in names:
        if name in _DOORS:
            return _DOORS[name], ""
    for name in names:
        for kind, told in _INSTEAD.items():
            if f"{name}.".startswith(f"{kind}."):
                return None, f"is {told}"
    name = names[0].removeprefix("builtins.")
    return None, f"must be a connection or session of psycopg, psycopg2, asyncpg, SQLAlchemy or Django, not {name}"
