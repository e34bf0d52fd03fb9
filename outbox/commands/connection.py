"""Connects commands to the database: by the DSN of the settings, or to the bundled Postgres, which it starts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import click
import psycopg

from .. import settings
from ..database import embedded, migrations
from ..database.dsn import cannot_connect
from ..database.session import connect
from ..errors import OutboxError


@contextmanager
def dsn_of(found: settings.Settings, *, migrated: bool = True) -> Iterator[str]:
    """Yields the DSN of the settings, or that of the bundled Postgres, started (and migrated) for this command."""
    if found.dsn:
        yield found.dsn
        return
    # A command that a signal ends must still leave the server, because the last command to leave stops it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    home = found.home or settings.default_home()
    with embedded.server(home) as dsn:
        click.echo(f"outbox: no OUTBOX_DSN; using the bundled Postgres in {home} (its data is kept)", err=True)
        if migrated:
            migrations.apply(dsn)
        yield dsn


@contextmanager
def database(found: settings.Settings, *, migrated: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """Yields an open connection, in autocommit."""
    # Only closed: psycopg's own `with` also rolls back, and prints a warning if Ctrl-C interrupted a query.
    with dsn_of(found, migrated=migrated) as dsn, closing(_connect(dsn)) as conn:
        yield conn


def _connect(dsn: str) -> psycopg.Connection[Any]:
    try:
        return connect(dsn, "cli", pooled=True)
    except psycopg.Error as error:
        raise OutboxError(cannot_connect(dsn, error)) from None
