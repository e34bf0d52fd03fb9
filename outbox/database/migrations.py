"""Brings the schema up to date. Any number of processes may migrate at once, under an advisory lock.

The SQL is of two kinds. `sql/structure/` holds tables and indexes in numbered steps, each applied once, in a
transaction of its own. Replaceable SQL (`sql/functions/`, `sql/views/`, triggers, comments) is applied after them, all
changed files in one transaction. Only `functions/ids` comes first, because column defaults call it. For changes that
CREATE OR REPLACE refuses, such as another signature, a numbered step drops and creates the object.

Each name is recorded with the hash of its text. A text whose hash an earlier release has shipped is replaced. An
unknown hash belongs to a later release, and an older release never replaces it. After a crash between two transactions,
the next run carries on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString

import psycopg
from psycopg.rows import tuple_row

from ..errors import SchemaError
from . import killpoints, turn
from .given import AnyDsn, given, is_dsn
from .schema import Migration, all_migrations, grants, history, text_of, transactions
from .session import connect, transaction

# An administrator may have made the schema for a role that can't make one. Functions may call each other in any order,
# because their bodies are not checked before all exist.
_PREPARE = """
DO $$ BEGIN
    IF to_regnamespace('outbox') IS NULL THEN CREATE SCHEMA outbox; END IF;
    IF to_regclass('outbox.schema_migrations') IS NULL THEN
        CREATE TABLE outbox.schema_migrations (
            name       text CONSTRAINT schema_migrations_pkey PRIMARY KEY,
            hash       text,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
    END IF;
END $$;
SET LOCAL check_function_bodies = off;
"""
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('outbox.migrate'))"
# As JSON, because a database from before the first release has other columns.
_RECORDED = "SELECT to_jsonb(m) ->> 'name', to_jsonb(m) ->> 'hash' FROM outbox.schema_migrations AS m"
_RECORD = """
INSERT INTO outbox.schema_migrations (name, hash) VALUES ({name}, {hash})
ON CONFLICT (name) DO UPDATE SET hash = excluded.hash, applied_at = now();
"""
# What is up to date may be so on this server alone: the COMMIT waits for its standbys.
_UP_TO_DATE = "SELECT outbox.commit_waits()"
# A script that is run later than it was printed must not replace what was applied in between.
_UNCHANGED = """
DO $$ BEGIN
    IF (SELECT coalesce(string_agg(m.name || ':' || coalesce(m.hash, ''), ',' ORDER BY m.name COLLATE "C"), '')
        FROM outbox.schema_migrations AS m) <> '{state}' THEN
        RAISE EXCEPTION 'the schema has changed since this script was printed; print it again: outbox migrate --sql';
    END IF;
END $$;
"""
# Once a database has given the groups their rights, migrations keep them up to date.
_HAS_ROLES = """
SELECT CASE WHEN to_regrole('outbox_viewer') IS NOT NULL AND to_regnamespace('outbox') IS NOT NULL
            THEN has_schema_privilege(to_regrole('outbox_viewer')::oid, 'outbox', 'USAGE') ELSE false END
"""

_OTHER_TABLES = (
    psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable,
    psycopg.errors.DuplicateColumn, psycopg.errors.DuplicateTable,
)  # fmt: skip
"""What the SQL of this release raises on tables that aren't those of its steps."""

_START_OVER = (
    "Dump what you need of the schema outbox, then run: DROP SCHEMA outbox CASCADE, outbox migrate, outbox deploy"
)

_OLDEST = 15
"""Oldest supported major version of Postgres."""

_UNRELEASED = "0001_pipelines"
"""The first step of databases made before the first release. They can't be migrated."""


def applied(conn: psycopg.Connection[Any]) -> dict[str, str | None]:
    """Returns the names that the database has recorded, with their hashes; none if there is no schema.

    Raises SchemaError if they can't be read, or if the database was made before the first release.
    """
    if not _row(conn, "SELECT to_regclass('outbox.schema_migrations') IS NOT NULL")[0]:
        return {}
    with conn.cursor(row_factory=tuple_row) as cursor:
        recorded: dict[str, str | None] = dict(cursor.execute(_RECORDED).fetchall())
    if _UNRELEASED in recorded:
        raise SchemaError(
            "this database was made by an Outbox from before the first release and can't be migrated: it has "
            f"{', '.join(sorted(recorded))}. {_START_OVER}"
        )
    return recorded


def pending(conn: psycopg.Connection[Any]) -> list[Migration]:
    """Returns what is still to be applied, in order: missing files, and files whose text in the database is older."""
    recorded = applied(conn)
    found = [migration for migration in all_migrations() if _is_pending(migration, recorded)]
    return [*found, *(each for each in _rights(conn) if _is_pending(each, recorded))]


def newer(conn: psycopg.Connection[Any]) -> list[str]:
    """Returns the names in the database that this Outbox doesn't know: a later release has migrated it."""
    recorded = applied(conn)
    steps = {migration.name for migration in all_migrations() if migration.hash is None}
    unknown = {name for name, text_hash in recorded.items() if text_hash is None} - steps
    return sorted([*unknown, *_replaced_later(recorded)])


def apply(where: AnyDsn | psycopg.Connection[Any]) -> list[str]:
    """Brings the schema up to date and returns the names that were applied now. Takes a DSN or a connection.

    Raises SchemaError if a later release has replaced functions: this release never overwrites them.
    """
    if is_dsn(where):
        with connect(given(where), "migrate", pooled=True) as conn:
            return apply(conn)
    _require_version(where)
    done: list[str] = []
    for together in transactions():
        with transaction(where):
            turn.take(where, "migrate")
            recorded = applied(where)
            _refuse_older(recorded)
            todo = [migration for migration in together if _is_pending(migration, recorded)]
            if together is transactions()[-1]:
                todo += [each for each in _rights(where) if todo or done or _is_pending(each, recorded)]
            if not todo:
                if together is transactions()[-1]:
                    where.execute(_UP_TO_DATE)
                continue
            where.execute(_PREPARE, prepare=False)
            for migration in todo:
                try:
                    where.execute(migration.sql.encode(), prepare=False)
                except _OTHER_TABLES as error:
                    raise SchemaError(_other_tables(migration, error)) from error
                where.execute(*_record(migration))
        done += [migration.name for migration in todo]
        killpoints.passing("K12")
    return done


def make_roles(conn: psycopg.Connection[Any]) -> None:
    """Makes those groups of docs/roles.md that the cluster lacks, and gives each its rights in this database.

    It touches nothing else, and may run any number of times and in several databases at once. Raises SchemaError if
    this role may not do it.
    """
    with conn.transaction():
        turn.take(conn, "migrate")
        try:
            conn.execute(text_of("roles").encode(), prepare=False)
        except psycopg.errors.InsufficientPrivilege:
            raise SchemaError(
                "this role may not create roles. Have an administrator run what this prints: "
                "outbox migrate --roles --sql. Or run this again as a role with CREATEROLE that owns the schema"
            ) from None
        try:
            _refuse_older(applied(conn))
            conn.execute(grants().sql.encode(), prepare=False)
            conn.execute(*_record(grants()))
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaError(
                f"only the owner of the schema gives rights in it: {error.diag.message_primary}"
            ) from None


def script(conn: psycopg.Connection[Any], *, roles: bool = False) -> str:
    """Returns the pending SQL as one script that psql takes, for those who apply SQL by other means.

    The script refuses a database that has changed since, unless it is about roles only. Raises SchemaError as `apply`
    does.
    """
    recorded, todo = applied(conn), pending(conn)
    _refuse_older(recorded)
    parts = ["BEGIN;", f"{_LOCK};", _PREPARE.strip()]
    if todo:
        parts.append(_UNCHANGED.format(state=_state(recorded)).strip())
    if roles:
        parts.append(text_of("roles").strip())
        todo = [*(migration for migration in todo if migration.name != grants().name), grants()]
    for migration in todo:
        text_hash = f"'{migration.hash}'" if migration.hash else "NULL"
        parts += [f"-- {migration.name}", migration.sql.strip()]
        parts.append(_RECORD.format(name=f"'{migration.name}'", hash=text_hash).strip())
    return "\n\n".join([*parts, "COMMIT;\n"])


def require(conn: psycopg.Connection[Any]) -> None:
    """Raises SchemaError if the server is too old, or the schema lacks what this code needs.

    A newer schema is fine, because it only adds.
    """
    _require_version(conn)
    recorded = applied(conn)
    if not recorded:
        raise SchemaError("there is no Outbox schema in this database. Run: outbox migrate")
    lacking = [migration.name for migration in all_migrations() if _is_pending(migration, recorded)]
    missing = [name for name in lacking if name not in recorded]
    if lacking:
        said = [f"missing {', '.join(missing)}"] if missing else []
        if older := [name for name in lacking if name in recorded]:
            said.append(f"older {', '.join(older)}")
        raise SchemaError(f"the database's schema is older than this Outbox ({'; '.join(said)}). Run: outbox migrate")


def _is_pending(migration: Migration, recorded: Mapping[str, str | None]) -> bool:
    if migration.name not in recorded:
        return True
    return recorded[migration.name] != migration.hash and migration.name not in _replaced_later(recorded)


def _replaced_later(recorded: Mapping[str, str | None]) -> set[str]:
    """Returns the names whose recorded text belongs to a later release: its hash is unknown to this one."""
    shipped = {(each.name, each.hash) for each in [*all_migrations(), grants()]}
    return {
        name
        for name, text_hash in recorded.items()
        if text_hash is not None and (name, text_hash) not in shipped and text_hash not in history().get(name, ())
    }


def _refuse_older(recorded: Mapping[str, str | None]) -> None:
    if later := _replaced_later(recorded):
        raise SchemaError(
            f"the database has {', '.join(sorted(later))} of a later release, and this Outbox doesn't put its own over "
            "them. Migrate with the release that made them, or a later one; this one runs on the schema as it is"
        )


def _other_tables(migration: Migration, error: psycopg.Error) -> str:
    """Returns what to do about tables that are not what this release's steps have made."""
    return (
        f"{migration.name} can't be applied: {error.diag.message_primary}. This database has tables of an Outbox "
        f"between two releases, or they were changed by hand. {_START_OVER}"
    )


def _record(migration: Migration) -> tuple[bytes, dict[str, str | None]]:
    """Returns the statement that records that a file was applied."""
    values = {"name": migration.name, "hash": migration.hash}
    return _RECORD.format(name="%(name)s", hash="%(hash)s").strip().rstrip(";").encode(), values


def _rights(conn: psycopg.Connection[Any]) -> list[Migration]:
    """Returns the migration with the groups' rights if this database has given them."""
    return [grants()] if _row(conn, _HAS_ROLES)[0] else []


def _state(recorded: Mapping[str, str | None]) -> str:
    """Returns the text that `_UNCHANGED` compares, sorted."""
    return ",".join(f"{name}:{text_hash or ''}" for name, text_hash in sorted(recorded.items())).replace("'", "''")


def _row(conn: psycopg.Connection[Any], question: LiteralString) -> tuple[Any, ...]:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(question).fetchone()
    assert row is not None
    return row


def _require_version(conn: psycopg.Connection[Any]) -> None:
    version = conn.info.server_version // 10_000
    if version < _OLDEST:
        raise SchemaError(f"the server is Postgres {version}; Outbox needs Postgres {_OLDEST} or newer")
