"""Connects commands to the database: by the DSN of the settings, or to the bundled Postgres, which it starts."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import click
import psycopg

from .. import settings
from ..database import embedded, migrations, primary, urls
from ..database.dsn import cannot_connect, engine_conninfo, readable, redact
from ..database.session import connect
from ..errors import OutboxError, SettingsError
from ..texts import printable

T = TypeVar("T")


NO_DATABASE = (
    "no database is given: set OUTBOX_DSN to your Postgres, such as postgresql://me@localhost/shop, "
    "or add --bundled to use a Postgres of Outbox's own"
)


def given_dsn(found: settings.Settings) -> str | None:
    """Returns the DSN of the settings, as libpq reads it; None if they name none. Names the setting in an error."""
    if found.database is None:
        return None
    name, dsn = found.database
    try:
        dsn = urls.libpq(dsn)
        if name == "DATABASE_URL":
            engine_conninfo(dsn, "cli")
        return dsn
    except SettingsError as error:
        raise SettingsError(f"DATABASE_URL: {error}" if name == "DATABASE_URL" else str(error)) from None


def listening_dsn(found: settings.Settings) -> str | None:
    """Returns OUTBOX_LISTEN_DSN as libpq reads it. Raises SettingsError if it can't be read."""
    if not found.listen_dsn:
        return None
    try:
        dsn = urls.libpq(found.listen_dsn)
    except SettingsError as error:
        raise SettingsError(f"OUTBOX_LISTEN_DSN: {error}") from None
    if not readable(dsn):
        raise SettingsError(f"OUTBOX_LISTEN_DSN can't be read: {redact(dsn)}")
    return dsn


def require_database(found: settings.Settings) -> None:
    """Ends the command as wrong usage if neither a DSN nor the bundled Postgres was asked for.

    A forgotten setting would otherwise show a healthy and empty database, and what was submitted would lie there.
    """
    if not (found.database or found.bundled or found.home):
        raise click.UsageError(NO_DATABASE)


@contextmanager
def dsn_of(found: settings.Settings, *, migrated: bool = True) -> Iterator[str]:
    """Yields the DSN of the settings, or that of the bundled Postgres, started (and migrated) for this command."""
    require_database(found)
    dsn = given_dsn(found)
    if dsn is not None:
        yield dsn
        return
    # A command that a signal ends must still leave the server, because the last command to leave stops it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    home = found.home or settings.default_home()
    with embedded.server(home) as dsn:
        click.echo(f"outbox: using the bundled Postgres in {home} (its data is kept)", err=True)
        if migrated:
            migrations.apply(dsn)
        yield dsn


@contextmanager
def database(found: settings.Settings, *, migrated: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """Yields an open connection, in autocommit."""
    # Only closed: psycopg's own `with` also rolls back, and prints a warning if Ctrl-C interrupted a query.
    with dsn_of(found, migrated=migrated) as dsn, closing(_connect(dsn)) as conn:
        yield conn


@contextmanager
def reaching(dsn: str) -> Iterator[None]:
    """Is a block in which an error says, without any secret, that no server was reached by this DSN."""
    try:
        yield
    except psycopg.OperationalError as error:
        if error.diag.message_primary:  # the answer of a server
            raise
        why = cannot_connect(dsn, error)
        if embedded.is_bundled(dsn):
            why += (
                " (This is the bundled Postgres, which runs only while a command uses it: "
                "start `outbox dev --bundled`, or add --bundled to this command.)"
            )
        raise OutboxError(why) from None


def asked(ask: Callable[[str], Coroutine[Any, Any, T]], dsn: str) -> T:
    """Returns what `ask` finds out about a DSN. Runs it in a thread: the caller's may have an event loop already."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(ask(dsn))).result()


def _connect(dsn: str) -> psycopg.Connection[Any]:
    with reaching(dsn):
        known = asked(primary.look, dsn)
        conn = connect(dsn, "cli", pooled=True, read_only=True)
    if known is not None and known.stand is None:
        at = printable(f"{conn.info.host}, port {conn.info.port}")
        click.echo(f"outbox: none of the hosts takes writes; this is what {at} has", err=True)
    return conn
