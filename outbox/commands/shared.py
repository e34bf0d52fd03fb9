"""What several commands share: options, and the way to the database."""

from __future__ import annotations

import getpass
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import psycopg

from .. import settings
from ..database import embedded, migrations
from ..database.dsn import cannot_connect, engine_conninfo
from ..errors import OutboxError

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number in a range. click's own lets NaN through, which is neither below nor above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


def app_option(command: Command) -> Command:
    return click.option(
        "--app", metavar="MODULE:OBJECT", help="A Pipeline, several, or a module with some; default OUTBOX_APP."
    )(command)


by_option = click.option(
    "--by", metavar="NAME", default=getpass.getuser, help="Who; it is kept. Default: your user name."
)
pipeline_option = click.option("--pipeline", metavar="NAME", help="The pipeline, where the entity is in several.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def document(text: str | None, what: str) -> Any:
    """Return an argument that is JSON, None if it wasn't given; a usage error that names it if it is not."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{what} is not JSON: {error}") from None


@contextmanager
def dsn_of(found: settings.Settings, *, migrated: bool = True) -> Iterator[str]:
    """Yield the DSN of the settings, or that of the bundled Postgres, started (and migrated) for this command."""
    if found.dsn:
        yield found.dsn
        return
    # Ended by a signal, the command still leaves the server, which the last one to leave stops.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with embedded.server(found.home) as dsn:
        click.echo(f"outbox: no OUTBOX_DSN; using the bundled Postgres in {found.home} (its data is kept)", err=True)
        if migrated:
            migrations.apply(dsn)
        yield dsn


@contextmanager
def database(found: settings.Settings, *, migrated: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """Yield an open connection, in autocommit."""
    with dsn_of(found, migrated=migrated) as dsn, _connect(dsn) as conn:
        yield conn


def _connect(dsn: str) -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(engine_conninfo(dsn, "cli"), autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise OutboxError(cannot_connect(dsn, error)) from None
