"""Sets up sessions as the engine needs them, whatever the settings of the server, the database and the role.

Settings that the engine relies on are set when a connection is made. A handler may set anything in its transaction:
`restore` puts back what the engine's last statement relies on, and `clean` forgets the rest before the next handler.

Not set, because the engine doesn't rely on it and it is the user's choice: TimeZone, row_security,
synchronous_commit, and in the sessions of handlers the isolation level and the timeouts. The search_path stays, but
what Postgres itself has comes first: the engine calls `now()`, and means Postgres' own. Least of all
`default_transaction_read_only`: it is how a former primary is kept from being written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from ..errors import SettingsError
from ..texts import printable
from . import primary, statements
from .attempts import connected
from .connection_group import PATIENCE, ConnectionGroup
from .dsn import ways
from .given import Dsn, current, current_async
from .statements import text_array
from .steps import Statement, perform, perform_async

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


def _needed(settings: Mapping[str, str], *, pooled: bool) -> Statement:
    """Returns the statement that sets these in a new session; behind a pooler only what that doesn't give to others."""
    chosen = {name: value for name, value in settings.items() if not pooled or name in _TRACKED}
    path = not pooled and "lock_timeout" in settings  # a session for handlers has the user's
    return SQL["session_set"], {**_arrays(chosen), "local": False, "path": path}


def restore(more: Mapping[str, str] | None = None) -> Statement:
    """Returns the statement that puts back, in a handler's transaction, what the engine's last statement relies on.

    `more` is set for the rest of the transaction.
    """
    chosen = {**{name: value for name, value in READING.items() if name != "idle_session_timeout"}, **(more or {})}
    return SQL["session_restore"], {**_arrays(chosen), "own": text_array(_OWN)}


def clean(role: str, *, pooled: bool = False) -> Statement:
    """Returns the statement after which nothing is left in the session that a handler has set or made.

    Behind a pooler it is the last one of the transaction. The session has then what the pooler takes for its client's
    own, and all else as it began.
    """
    if not pooled:
        return SQL["session_clean"], _arrays(READING)
    its_own = {**_TRACKED, "client_encoding": "UTF8", "application_name": f"outbox {role}"}
    # RESET ALL passes over what `restore` has put back for this transaction, and its end would bring it again.
    return SQL["session_clean"], _arrays({**dict.fromkeys(_OWN), **its_own})


_BEHIND_POOLER = {"array_nulls": "on", "transform_null_equals": "off"}
"""What would have wrong values written or read, and can't be set in a session that others are given."""


def require_pooled(conn: psycopg.Connection[Any]) -> None:
    """Raises SettingsError, naming what is to be set, if a pooler's sessions are not as the engine needs them."""
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
    for name, found, wanted in cursor.execute(SQL["session_wrong"], _arrays(_BEHIND_POOLER)).fetchall():
        how = f"SET {name} = {wanted}" if wanted else f"SET {name} = …, without pg_catalog"
        raise SettingsError(
            f"behind the pooler, {name} is {printable(found)}, and can't be set for Outbox alone: "
            f"ALTER ROLE {printable(conn.info.user)} {how}"
        )


def connect(
    dsn: Dsn, role: str, *, settings: Mapping[str, str] = WORKING, pooled: bool = False, read_only: bool = False,
    group: ConnectionGroup | None = None,
) -> psycopg.Connection[Any]:  # fmt: skip
    """Returns a connection in autocommit whose session is as the engine needs it. `role` is in its name.

    `pooled`: a pooler may be in between, as it always may for what a person runs. `read_only`: a server that can only
    be read will do, if there is no other; else it is an error. It is cut with the others of `group`.
    """
    group = group or ConnectionGroup()
    group.require_room()
    place = current(dsn)
    for conninfo, last in _ways(place, role, group, pooled=pooled, read_only=read_only):
        try:
            conn = psycopg.connect(primary.narrowed(conninfo), autocommit=True, prepare_threshold=threshold(pooled))
            break
        except psycopg.OperationalError:
            if last:
                raise
    try:
        setting = _needed(settings, pooled=pooled)
        perform(group.add(conn, dsn, place, setting, read_only=read_only), lambda step: conn.execute(*step).fetchall())
    except BaseException:
        conn.close()
        raise
    return conn


async def connect_async(
    dsn: Dsn,
    role: str,
    *,
    settings: Mapping[str, str] = WORKING,
    pooled: bool = False,
    group: ConnectionGroup | None = None,
) -> psycopg.AsyncConnection[Any]:
    """Does what `connect` does, async, for what writes. Makes further attempts beside one that takes long."""
    group = group or ConnectionGroup()
    group.require_room()
    return await connected(lambda: _attempt(dsn, role, settings, pooled, group))


async def _attempt(
    dsn: Dsn, role: str, settings: Mapping[str, str], pooled: bool, group: ConnectionGroup
) -> psycopg.AsyncConnection[Any]:
    place = await current_async(dsn)
    for conninfo, last in _ways(place, role, group, pooled=pooled):
        try:
            conn = await psycopg.AsyncConnection.connect(
                primary.narrowed(conninfo), autocommit=True, prepare_threshold=threshold(pooled)
            )
            break
        except psycopg.OperationalError:
            if last:
                raise

    async def take(step: Statement) -> list[tuple[Any, ...]]:
        return await (await conn.execute(*step)).fetchall()

    try:
        with group.within(PATIENCE, only=conn):
            await perform_async(group.add(conn, dsn, place, _needed(settings, pooled=pooled), read_only=False), take)
    except BaseException:
        await conn.close()
        raise
    return conn


def _ways(
    dsn: str, role: str, group: ConnectionGroup, *, pooled: bool, read_only: bool = False
) -> list[tuple[str, bool]]:
    several = primary.has_several(dsn)
    return ways(group.without(dsn), role, pooled=pooled, read_only=read_only, several=several)


def tuples(conn: psycopg.Connection[Any], statement: bytes, **params: Any) -> list[Any]:
    """Runs a statement, and returns its rows as tuples, whatever the connection's own factories make of rows."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(statement, params or None).fetchall()


@contextmanager
def transaction(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Opens a transaction, or a savepoint in the caller's, in which values are written and read as the engine needs it.

    Afterwards the caller's settings are as before.
    """
    chosen = {"client_encoding": "UTF8", **READING}
    with conn.transaction():
        found = tuples(conn, SQL["session_read"], names=text_array([*chosen, "search_path"]))
        tuples(conn, SQL["session_set"], **_arrays(chosen), local=True, path=True)
        yield
        tuples(conn, SQL["session_set"], **_arrays(dict(found)), local=True, path=False)


def _arrays(settings: Mapping[str, str | None]) -> dict[str, str]:
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
