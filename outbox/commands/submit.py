"""Defines `outbox submit`, which starts workflows from a file of any length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from .. import settings
from ..client.submit import submit_text
from ..database import migrations
from ..errors import OutboxError
from ..texts import printable
from . import application, lines, screen
from .connection import database
from .options import app_option, json_option


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-")
@click.option("--pipeline", required=True, metavar="NAME", help="The pipeline that the workflows start in.")
@app_option
@click.option("--skip-bad", is_flag=True, help="Skip broken lines; count and report them.")
@json_option
@click.pass_obj
def submit(found: settings.Settings, file: Path, pipeline: str, app: str | None, skip_bad: bool, as_json: bool) -> None:
    """Start a workflow for each JSON line of FILE, all or none.

    Without FILE, the lines come from standard input:

    \b
    {"entity_id": "post_123", "metadata": {"content": "hello"}}

    With --app, the pipeline's model validates the metadata. An entity that already has a workflow counts as existing.
    """
    model = application.find(app, pipeline) if app else None
    if str(file) != "-" and not file.is_file():
        raise click.BadParameter(
            f"there is no file {printable(file)}. For a pipe or standard input, give -",
            param_hint="FILE",
        )
    with database(found) as conn, _progress(file) as (stream, on_bytes):
        migrations.require(conn)
        read = lines.Lines(model, skip_bad, on_bytes)
        with conn.transaction():
            started = submit_text(pipeline, conn, read.items(lines.bounded(stream)), of_code=model is not None)
    for reason in read.reasons:
        click.echo(f"skipped {printable(reason)}", err=True)
    if read.skipped > len(read.reasons):
        click.echo(f"… and {read.skipped - len(read.reasons)} more", err=True)
    result = {"submitted": started, "existing": read.read - started, "skipped": read.skipped}
    if as_json:
        screen.echo_json(result)
    else:
        click.echo(", ".join(f"{name} {count}" for name, count in result.items()))


@contextmanager
def _progress(file: Path) -> Iterator[tuple[IO[bytes], Callable[[int], None]]]:
    """Yields the file's stream, and a function that takes the number of bytes read. On a terminal it shows progress."""
    piped = str(file) == "-"
    if piped and sys.stdin is None:
        raise OutboxError("standard input is closed: give a FILE, or pipe lines into the command")
    with click.open_file(str(file), "rb") as stream:
        if sys.stderr is None or not sys.stderr.isatty():
            yield stream, lambda count: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("submit"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("submit", total=None if piped else file.stat().st_size)
            yield stream, lambda count: progress.advance(task, count)
