"""Sets up sessions as the engine needs them, whatever the settings of the server, the database and the role.

Settings that the engine relies on are set when a connection is made. A handler may set anything in its transaction:
`restore` puts back what the engine's last statement relies on, and `clean` forgets the rest before the next handler.

Some settings are left to the user, because the engine doesn't rely on them: TimeZone, search_path, row_security,
synchronous_commit, and in handlers' sessions the isolation level and the timeouts. Above all
`default_transaction_read_only` is left alone: it keeps a former primary from being written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from . import statements
from .dsn import engine_conninfo
from .statements import text_array
from .steps import Statement

SQL = statements.load("session")

# Poolers track these settings for each client, as they do client_encoding, which every connection string sets.
_TRACKED = {"DateStyle": "ISO", "IntervalStyle": "postgres"}

READING = {
    **_TRACKED,
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "idle_session_timeout": "0",
}
"""How values are written and read. The sessions that handlers get have these settings."""

WORKING = {
    **READING,
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
}
"""The same, and isolation and timeouts. The engine's own sessions have these settings."""

_OWN = ("search_path", "row_security", "statement_timeout", "lock_timeout")
"""Settings put back to the session's own values before the engine's last statement in a handler's transaction."""


def threshold(pooled: bool) -> int | None:
    """Returns after how many uses psycopg prepares a statement; None (never) if a pooler shares the sessions."""
    return None if pooled else 5


def needed(settings: Mapping[str, str], *, pooled: bool) -> Statement:
    """Returns the statement that sets these in a new session; behind a pooler, only those that the pooler tracks."""
    chosen = {name: value for name, value in settings.items() if not pooled or name in _TRACKED}
    return SQL["session_set"], _arrays(chosen)


def restore(more: Mapping[str, str] | None = None) -> Statement:
    """Returns the statement that puts back, in a handler's transaction, what the engine's last statement relies on.

    `more` is set for the rest of the transaction.
    """
    chosen = {**{name: value for name, value in READING.items() if name != "idle_session_timeout"}, **(more or {})}
    return SQL["session_restore"], {**_arrays(chosen), "own": text_array(_OWN)}


def clean() -> Statement:
    """Returns the statement that removes everything a handler has set or made in the session."""
    return SQL["session_clean"], _arrays(READING)


def connect(
    dsn: str, role: str, *, settings: Mapping[str, str] = WORKING, pooled: bool = False
) -> psycopg.Connection[Any]:
    """Returns an autocommit connection whose session is set up for the engine. `role` is part of its name.

    `pooled`: there may be a pooler in between. For commands that a person runs, assume that there always may be.
    """
    conn = psycopg.connect(engine_conninfo(dsn, role), autocommit=True, prepare_threshold=threshold(pooled))
    try:
        conn.execute(*needed(settings, pooled=pooled))
    except BaseException:
        conn.close()
        raise
    return conn


async def connect_async(
    dsn: str, role: str, *, settings: Mapping[str, str] = WORKING, pooled: bool = False
) -> psycopg.AsyncConnection[Any]:
    """Does what `connect` does, but async."""
    conninfo = engine_conninfo(dsn, role)
    conn = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=threshold(pooled))
    try:
        await conn.execute(*needed(settings, pooled=pooled))
    except BaseException:
        await conn.close()
        raise
    return conn


@contextmanager
def transaction(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Opens a transaction, or a savepoint in the caller's, in which values are written and read as the engine needs it.

    Afterwards the caller's settings are as before.
    """
    chosen = {"client_encoding": "UTF8", **READING}
    with conn.transaction():
        cursor = psycopg.Cursor(conn, row_factory=tuple_row)
        found = cursor.execute(SQL["session_read"], {"names": text_array(chosen)}).fetchall()
        cursor.execute(SQL["session_set_local"], _arrays(chosen))
        yield
        cursor.execute(SQL["session_set_local"], _arrays(dict(found)))


def _arrays(settings: Mapping[str, str]) -> dict[str, str]:
    return {"names": text_array(settings), "values": text_array(settings.values())}


def reclaim(conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], prepare_threshold: int | None) -> None:
    """Resets what a handler may have set on a connection: factories, adapters, threshold, notice handlers."""
    conn.row_factory = tuple_row
    conn.prepare_threshold = prepare_threshold
    conn._adapters = None  # made again from psycopg's own when it is next needed
    conn._notice_handlers.clear()
    conn._notify_handlers.clear()
    if isinstance(conn, psycopg.AsyncConnection):
        conn.cursor_factory = psycopg.AsyncCursor
        conn.server_cursor_factory = psycopg.AsyncServerCursor
    else:
        conn.cursor_factory = psycopg.Cursor
        conn.server_cursor_factory = psycopg.ServerCursor
