"""Keeps the schema `outbox` and the pipelines in it up to date, on the connection that `manage.py migrate` uses.

The app's first migration creates the schema, so migrations of other apps can depend on it. Later releases of Outbox
need no migration: `migrate` brings a schema that is there up to date before it applies anything, and deploys the
pipelines at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.core.management.base import CommandError
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from psycopg.rows import tuple_row

from ..cli import explain
from ..database import migrations
from ..errors import OutboxError, Stranded
from ..operations.prepare import deploy
from . import discovery, project

Tell = Callable[[str], object]


@contextmanager
def own(connection: Any) -> Iterator[psycopg.Connection[Any]]:
    """Yields the psycopg connection of one of Django's, with psycopg's own cursors and adapters for this time."""
    connection.ensure_connection()
    conn: psycopg.Connection[Any] = connection.connection
    if not conn.autocommit:
        conn.execute("SELECT")  # in an `atomic` that has sent nothing yet, our block would be the one that commits
    kept = conn.cursor_factory, conn.row_factory, conn._adapters
    conn.cursor_factory, conn.row_factory, conn._adapters = psycopg.Cursor, tuple_row, None
    try:
        yield conn
    finally:
        conn.cursor_factory, conn.row_factory, conn._adapters = kept


class MigrateOutbox(Operation):
    """Creates the schema `outbox`, or brings it up to date, in the transaction of the migration.

    It does nothing in a database that is not the one of OUTBOX. It can't be undone: `DROP SCHEMA outbox CASCADE` would
    delete all workflows.
    """

    reversible = False

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Changes no model."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        if not project.is_ours(schema_editor.connection.alias):
            return
        if schema_editor.collect_sql:
            schema_editor.collected_sql.append("-- The schema outbox: `manage.py outbox migrate --sql` prints its SQL.")
            return
        with _told("the schema outbox was not created"), own(schema_editor.connection) as conn:
            migrations.apply(conn)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        raise AssertionError("it is not reversible")

    def describe(self) -> str:
        return "Create the schema outbox, or update it"


def upgrade(connection: Any, tell: Tell) -> None:
    """Brings a schema that is there up to date. The first migration creates it, unless the app has none here."""
    with _told("the schema outbox was not updated"), own(connection) as conn:
        if not (migrations.applied(conn) or has_no_migrations()) or not migrations.pending(conn):
            return
        for name in migrations.apply(conn):
            tell(f"  Outbox: applied {name}")


def deploy_pipelines(connection: Any, tell: Tell) -> None:
    """Deploys those of the project's pipelines that have changed, if the schema is there."""
    with _told("the pipelines were not deployed"), own(connection) as conn:
        if not migrations.applied(conn):
            return
        for name, lines in deploy(conn, discovery.pipelines()).items():
            for line in lines:
                tell(f"  Outbox: {name}: {line}")


def problem(connection: Any) -> str | None:
    """Returns what is older in the database than this code needs, or None. A schema that isn't there is no problem.

    Django itself says that the migration that creates it is to be applied.
    """
    with own(connection) as conn:
        if not migrations.applied(conn):
            return None
        try:
            migrations.require(conn)
        except OutboxError as error:
            return str(error).replace("outbox migrate", "manage.py migrate")
    return None


def has_no_migrations() -> bool:
    """Tells whether the project has switched the app's migrations off, as pytest's --no-migrations does."""
    module, _ = MigrationLoader.migrations_module(project.APP)
    return module is None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Raises CommandError, which `manage.py` prints without a traceback, for what Outbox or Postgres refuses."""
    try:
        yield
    except Stranded as error:
        listed = "".join(f"\n  {problem}" for problem in error.problems)
        raise CommandError(f"{what}: {explain(error)}{listed}") from error
    except (OutboxError, psycopg.Error) as error:
        raise CommandError(f"{what}: {explain(error)}") from error
