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
from ..database import embedded, migrations, primary
from ..database.dsn import cannot_connect
from ..database.session import connect
from ..errors import OutboxError
from ..texts import printable

T = TypeVar("T")


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


@contextmanager
def reaching(dsn: str) -> Iterator[None]:
    """Is a block in which an error says, without any secret, that no server was reached by this DSN."""
    try:
        yield
    except psycopg.OperationalError as error:
        if error.diag.message_primary:  # the answer of a server
            raise
        raise OutboxError(cannot_connect(dsn, error)) from None


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
