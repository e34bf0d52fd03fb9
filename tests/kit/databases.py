"""Makes the tests' databases: clones of templates that pytest-postgresql keeps on a server that the kit starts.

The package manages the templates, the clones and their removal. The servers stay ours (servers.py), because the
package's own starter can't run as root, and tests kill, stop and restart their servers, which have several versions and
settings. The DSN of a clone is ours, too. The package's client is a superuser's connection to a database whose name is
used again. The tests work as the owner of the schema, and a process that outlives its test must not find the next
test's database.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from kit.servers import PostgresServer
from outbox.database import migrations

OWNER = "outbox_owner"

_numbers = itertools.count(1)
_sessions: dict[tuple[str, int], psycopg.Connection[Any]] = {}


def templates() -> tuple[Any, Any]:
    """Returns the fixtures `empty_template` and `template`, for the fixture `server` where they are defined."""
    return (
        factories.postgresql_noproc(depends_on="server", dbname="empty", load=[give_schema]),
        factories.postgresql_noproc(depends_on="empty_template", dbname="migrated", load=[migrate]),
    )


def give_schema(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Gives a database the empty schema `outbox` and its owner, who owns nothing else."""
    with psycopg.connect(host=host, port=port, user=user, dbname=dbname) as conn:
        if not conn.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (OWNER,)).fetchone():
            conn.execute(f"CREATE ROLE {OWNER} LOGIN")
        conn.execute(f"CREATE SCHEMA outbox AUTHORIZATION {OWNER}")


def migrate(*, host: str, port: int, dbname: str, **_: object) -> None:
    """Applies all migrations, as the owner."""
    migrations.apply(_dsn(host, port, dbname))


class _Janitor(DatabaseJanitor):
    """Works through a session if it is given one. The package's own opens two for each database."""

    session: psycopg.Connection[Any] | None = None

    @contextmanager
    def cursor(self, dbname: str | None = None) -> Iterator[psycopg.Cursor[Any]]:
        if self.session is None:
            with super().cursor(dbname) as cursor:
                yield cursor
        else:
            with self.session.cursor() as cursor:
                yield cursor

    def _build_create_database_sql(self) -> sql.Composed:
        # Copies the files, with the catalogs' cache: half the work of Postgres' default, which logs each page.
        return super()._build_create_database_sql() + sql.SQL(" STRATEGY file_copy")


def janitor(server: PostgresServer | NoopExecutor, name: str, template: str | None = None) -> _Janitor:
    """Returns what makes a database of this name on the server, and drops it even if sessions are still connected."""
    return _Janitor(host=server.host, port=server.port, user=server.user, dbname=name, template_dbname=template)


@contextmanager
def clone(template: NoopExecutor, name: str | None = None) -> Iterator[str]:
    """Clones a template for as long as the context lasts; yields the owner's DSN."""
    name = name or f"test_{next(_numbers)}"
    made = janitor(template, name, template.template_dbname)
    made.session = _session(template)
    with made:
        yield _dsn(template.host, template.port, name)


def end_sessions() -> None:
    """Ends the sessions through which clones were made."""
    while _sessions:
        _sessions.popitem()[1].close()


def _session(server: NoopExecutor) -> psycopg.Connection[Any]:
    """Returns the session that makes and drops all clones of a server: to open one takes as long as half a clone."""
    at = server.host, server.port
    if at in _sessions:
        try:
            _sessions[at].execute("SELECT 1")
        except psycopg.OperationalError:  # a test has ended its server
            _sessions.pop(at).close()
    if at not in _sessions:
        _sessions[at] = psycopg.connect(
            host=server.host, port=server.port, user=server.user, dbname="postgres", autocommit=True
        )
    return _sessions[at]


def make_database(server: PostgresServer, name: str) -> str:
    """Makes a database with an empty schema, which lasts as long as its server; returns the owner's DSN."""
    made = janitor(server, name)
    made.init()
    made.load(give_schema)
    return server.dsn(name, OWNER)


def keep_statistics(conn: psycopg.Connection[Any]) -> None:
    """Keeps autovacuum, which comes when it comes, from changing what plans are made from."""
    tables = "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r'"
    for (table,) in conn.execute(tables).fetchall():
        conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)".encode())


def _dsn(host: str, port: int, name: str) -> str:
    return f"postgresql://{OWNER}@{host}:{port}/{name}"
