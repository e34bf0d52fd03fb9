"""Makes a database whose time stands still until the test moves it, while the engine's SQL is unchanged.

The engine reads the time by functions such as `now()`, which Postgres looks up like any other: if a schema with its own
`now()` comes before pg_catalog in the search path, Postgres calls that one. Therefore the outbox schema is made with
such a schema in front, and column defaults and views keep it. Functions that fix their search path, and sessions that
use the clock, also get it in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psycopg
from psycopg.conninfo import make_conninfo

from outbox.database import migrations

_SCHEMA = """
CREATE SCHEMA fake;
GRANT USAGE ON SCHEMA fake TO PUBLIC;
CREATE FUNCTION fake.now() RETURNS timestamptz LANGUAGE sql STABLE
RETURN timestamptz '2030-01-01Z' + make_interval(secs => coalesce(current_setting('fake.seconds', true), '0')::float8);
CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql STABLE RETURN fake.now();
CREATE FUNCTION fake.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE RETURN fake.now();
CREATE FUNCTION fake.seconds(at timestamptz) RETURNS float8 LANGUAGE sql IMMUTABLE
RETURN extract(epoch FROM at - timestamptz '2030-01-01Z')::float8;
"""
_FIXED = """
SELECT format('ALTER FUNCTION %s SET search_path = fake, pg_catalog, pg_temp', p.oid::regprocedure) FROM pg_proc AS p
WHERE p.pronamespace = 'outbox'::regnamespace AND 'search_path=pg_catalog, pg_temp' = ANY (p.proconfig)
"""


def install(admin_dsn: str, dsn: str) -> str:
    """Migrates an empty database to a fake clock; returns the DSN for sessions that use it."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(_SCHEMA)
    faked = make_conninfo(dsn, options="-c search_path=fake,pg_catalog")
    with patch.object(migrations, "transaction", plain_transaction):
        migrations.apply(faked)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        for (statement,) in admin.execute(_FIXED).fetchall():
            admin.execute(statement.encode())
    return faked


@contextmanager
def plain_transaction(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Is a transaction whose search_path stays: the engine's own has what Postgres has before all else."""
    with conn.transaction():
        yield


def stop(admin_dsn: str) -> None:
    """Stops the clock for the engine's functions in a migrated database. Everything else has the real time."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(_SCHEMA)
        for (statement,) in admin.execute(_FIXED).fetchall():
            admin.execute(statement.encode())


def move(conn: psycopg.Connection[Any], seconds: float) -> None:
    """Sets the time, for this session, to so many seconds after the start."""
    conn.execute("SELECT set_config('fake.seconds', %s, false)", [str(seconds)])
