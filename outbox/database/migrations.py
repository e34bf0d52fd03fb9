"""The schema, moved forward in numbered steps, each in a transaction of its own under an advisory lock.

Any number of processes may migrate at once; a step that was applied meanwhile is passed over. A crash between
two steps leaves a schema that the next run carries on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, LiteralString

import psycopg
from psycopg.rows import tuple_row

from ..errors import SchemaError
from . import killpoints

# The schema itself may have been made by an administrator for a role that can't make one.
_PREPARE = """
DO $$ BEGIN
    IF to_regnamespace('outbox') IS NULL THEN CREATE SCHEMA outbox; END IF;
    IF to_regclass('outbox.schema_migrations') IS NULL THEN
        CREATE TABLE outbox.schema_migrations (
            name       text CONSTRAINT schema_migrations_pkey PRIMARY KEY,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
    END IF;
END $$;
"""
# Who has given the groups rights once wants them to keep them.
_HAS_ROLES = """
SELECT to_regrole('outbox_viewer') IS NOT NULL
   AND has_schema_privilege(to_regrole('outbox_viewer')::oid, 'outbox', 'USAGE')
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('outbox.migrate'))"
_RECORD = "INSERT INTO outbox.schema_migrations (name) VALUES ({});"

_OLDEST = 15
"""The oldest Postgres, by its major version."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str
    sql: str


def all_migrations() -> list[Migration]:
    """Return what this Outbox ships, in order."""
    folder = files("outbox.sql").joinpath("migrations")
    found = [item for item in folder.iterdir() if item.name.endswith(".sql")]
    return [
        Migration(item.name.removesuffix(".sql"), item.read_text(encoding="utf-8"))
        for item in sorted(found, key=lambda item: item.name)
    ]


def applied(conn: psycopg.Connection[Any]) -> set[str]:
    """Return the names that the database has; none where there is no schema. SchemaError if it can't be read."""
    if not _row(conn, "SELECT to_regclass('outbox.schema_migrations') IS NOT NULL")[0]:
        return set()
    with conn.cursor(row_factory=tuple_row) as cursor:
        return {name for (name,) in cursor.execute("SELECT name FROM outbox.schema_migrations").fetchall()}


def pending(conn: psycopg.Connection[Any]) -> list[Migration]:
    """Return what is still to be applied, in order."""
    there = applied(conn)
    return [migration for migration in all_migrations() if migration.name not in there]


def newer(conn: psycopg.Connection[Any]) -> list[str]:
    """Return what the database has and this Outbox doesn't know: it was migrated by a later release."""
    return sorted(applied(conn) - {migration.name for migration in all_migrations()})


def apply(where: str | psycopg.Connection[Any]) -> list[str]:
    """Bring the schema up to date and return the names that were applied now. Takes a DSN or a connection."""
    if isinstance(where, str):
        with psycopg.connect(where, autocommit=True) as conn:
            return apply(conn)
    _require_version(where)
    done = []
    for migration in all_migrations():
        with where.transaction():
            where.execute(_LOCK)
            where.execute(_PREPARE)
            if migration.name in applied(where):
                continue
            where.execute(migration.sql.encode(), prepare=False)
            where.execute("INSERT INTO outbox.schema_migrations (name) VALUES (%s)", (migration.name,))
            done.append(migration.name)
        killpoints.passing("K12")
    if done:
        with where.transaction():
            where.execute(_LOCK)
            if _row(where, _HAS_ROLES)[0]:
                where.execute(_file("grants.sql").encode(), prepare=False)
    return done


def make_roles(conn: psycopg.Connection[Any]) -> None:
    """Make the groups of docs/roles.md that the cluster lacks, and give each its rights in this database, no more.

    Safe to run any number of times and in several databases at once. SchemaError if this role may not do it.
    """
    with conn.transaction():
        conn.execute(_LOCK)
        try:
            conn.execute(_file("roles.sql").encode(), prepare=False)
        except psycopg.errors.InsufficientPrivilege:
            raise SchemaError(
                "this role may not create roles. Have an administrator run what this prints: "
                "outbox migrate --roles --sql. Or run this again as a role with CREATEROLE that owns the schema"
            ) from None
        try:
            conn.execute(_file("grants.sql").encode(), prepare=False)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"only the owner of the schema gives rights in it: {error.diag.message_primary}"
            ) from None


def script(migrations: list[Migration], *, roles: bool = False) -> str:
    """Return the migrations as one script that psql takes, for those who apply SQL by other means."""
    parts = ["BEGIN;", f"{_LOCK};", _PREPARE.strip()]
    for migration in migrations:
        quoted = "'" + migration.name.replace("'", "''") + "'"
        parts += [f"-- {migration.name}", migration.sql.strip(), _RECORD.format(quoted)]
    if roles:
        parts += [_file("roles.sql").strip(), _file("grants.sql").strip()]
    return "\n\n".join([*parts, "COMMIT;\n"])


def require(conn: psycopg.Connection[Any]) -> None:
    """Raise SchemaError if the server is too old, or the schema lacks what this code needs.

    A newer schema is fine: it only adds.
    """
    _require_version(conn)
    missing = pending(conn)
    if len(missing) == len(all_migrations()):
        raise SchemaError("there is no Outbox schema in this database. Run: outbox migrate")
    if missing:
        names = ", ".join(migration.name for migration in missing)
        raise SchemaError(f"the database's schema is older than this Outbox (missing {names}). Run: outbox migrate")


def _file(name: str) -> str:
    return files("outbox.sql").joinpath(name).read_text(encoding="utf-8")


def _row(conn: psycopg.Connection[Any], question: LiteralString) -> tuple[Any, ...]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(question).fetchone()
    assert row is not None
    return row


def _require_version(conn: psycopg.Connection[Any]) -> None:
    version = conn.info.server_version // 10_000
    if version < _OLDEST:
        raise SchemaError(f"the server is Postgres {version}; Outbox needs Postgres {_OLDEST} or newer")
