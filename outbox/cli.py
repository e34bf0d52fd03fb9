"""The command line. Results go to standard output, logs to the other.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import getpass
import importlib
import io
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import psycopg

from . import application, bulk, deploy, doctor, embedded, inspect, logs, migrations, screen, settings
from .documents import printable
from .errors import OutboxError, SettingsError
from .link import cannot_connect, engine_conninfo
from .maintenance import MAX_DAYS, Retention
from .submit import submit_text
from .worker import Worker

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number in a range. click's own lets NaN through, which is neither below nor above."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


class Group(click.Group):
    """Turns our errors and Postgres' into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OutboxError, psycopg.Error) as error:
            click.echo(f"outbox: {explain(error)}", err=True)
            ctx.exit(1)
        except UnicodeEncodeError:
            click.echo("outbox: an argument or a setting is not UTF-8", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("outbox: interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at exit
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, "demo"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "demo":
            # It lies in examples/, and is mapped into the package only when that is installed.
            found: click.Command = importlib.import_module("outbox.demo.command").demo
            return found
        return super().get_command(ctx, name)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dsn", metavar="DSN", help="The Postgres to work on; default OUTBOX_DSN, else a bundled one.")
@click.version_option(package_name="outbox-engine")
@click.pass_context
def main(ctx: click.Context, dsn: str | None) -> None:
    """Long-lived pipelines on the Postgres that you already run: change a status, and the next agent runs.

    \b
    First steps:
      outbox migrate                           make the schema
      outbox deploy --app shop.pipelines:orders  write the pipeline
      outbox worker --app shop.pipelines:orders  run its stages
      outbox status                            see where everything is

    Settings come from the command line, OUTBOX_DSN, OUTBOX_LISTEN_DSN, OUTBOX_APP and OUTBOX_HOME, or
    [tool.outbox] in pyproject.toml.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show ✔, or what is in the data
    ctx.obj = settings.load(dsn=dsn)


def app_option(command: Command) -> Command:
    return click.option(
        "--app", metavar="MODULE:OBJECT", help="A Pipeline, several, or a module with some; default OUTBOX_APP."
    )(command)


pipeline_option = click.option("--pipeline", metavar="NAME", help="The pipeline, where the entity is in several.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


@main.command()
@click.option("--check", is_flag=True, help="Say what is pending; exit 1 if anything is. Changes nothing.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the pending SQL as a script for psql. Changes nothing.")
@click.pass_obj
def migrate(found: settings.Settings, check: bool, as_sql: bool) -> None:
    """Make or update the schema `outbox`, forward only; safe to run from anywhere, any number of times."""
    with database(found, migrated=False) as conn:
        pending = migrations.pending(conn)
        for name in migrations.newer(conn):
            click.echo(
                f"the database has {name}, which this Outbox doesn't know: it was migrated by a later release", err=True
            )
        if as_sql:
            click.echo(migrations.script(pending) if pending else "-- nothing is pending", nl=not pending)
        elif check:
            for migration in pending:
                click.echo(f"pending {migration.name}")
            if pending:
                sys.exit(1)
            click.echo("the schema is up to date")
        else:
            for name in migrations.apply(conn):
                click.echo(f"applied {name}")
            click.echo("the schema is up to date")


@main.command("deploy")
@app_option
@click.option("--check", is_flag=True, help="Say what would change; exit 1 if it would be refused. Changes nothing.")
@click.pass_obj
def deploy_command(found: settings.Settings, app: str | None, check: bool) -> None:
    """Write a pipeline's statuses, legal changes and routes into the database.

    Refused, with the list, when workflows stand in a status that the new version no longer knows.
    """
    pipelines = application.load(app or found.app)
    with database(found) as conn:
        migrations.require(conn)
        for pipeline in pipelines:
            lines = deploy.check(conn, pipeline) if check else deploy.deploy(conn, pipeline)
            for line in lines:
                click.echo(f"{pipeline.name}: {line}")
            if not lines:
                click.echo(f"{pipeline.name}: nothing to change")


@main.command()
@app_option
@click.option("--stage", "stages", multiple=True, help="Serve only this stage; may be given again. Default: all.")
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), help="Attempts at once per stage, unless the stage says."
)
@click.option("--drain", is_flag=True, help="Exit when nothing is due.")
@click.option(
    "--lease",
    type=Number(0.5, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that a frozen worker keeps its jobs.",
)
@click.option(
    "--grace",
    type=Number(0, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that running handlers get after SIGTERM.",
)
@click.option(
    "--log",
    "log_style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines look.",
)
@click.option("--no-notify", is_flag=True, help="Poll only; don't LISTEN.")
@click.option(
    "--keep-workflows",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    help="Delete workflows that ended longer ago, with their history.",
)
@click.option("--keep-history", type=Number(0, MAX_DAYS), metavar="DAYS", help="Delete history that is older.")
@click.option(
    "--keep-dead",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    default=90.0,
    show_default=True,
    help="Drop the errors of jobs that died longer ago; that they are dead stays.",
)
@click.pass_obj
def worker(
    found: settings.Settings, app: str | None, stages: tuple[str, ...], concurrency: int | None, drain: bool,
    lease: float, grace: float, log_style: str, no_notify: bool, keep_workflows: float | None,
    keep_history: float | None, keep_dead: float,
) -> None:  # fmt: skip
    """Run the stages of an application, until SIGTERM or Ctrl-C.

    The first signal gives back what has not started and lets running handlers finish within the grace time; the
    second one stops at once. Any number of workers, on any number of machines, share the work.
    """
    logs.set_up(log_style)
    pipelines = application.load(app or found.app)
    if found.listen_dsn and not settings.readable(found.listen_dsn):
        raise SettingsError(f"OUTBOX_LISTEN_DSN can't be read: {settings.redact(found.listen_dsn)}")
    with dsn_of(found) as dsn:
        made = Worker(
            pipelines,
            dsn,
            stages=stages or None,
            concurrency=concurrency,
            listen_dsn=found.listen_dsn,
            lease=lease,
            grace=grace,
            drain=drain,
            notify=not no_notify,
            retention=Retention(workflows=keep_workflows, history=keep_history, dead_jobs=keep_dead),
        )
        try:
            asyncio.run(_run(made))
        except psycopg.Error as error:
            if error.diag.message_primary:  # a server's answer; else none was reached
                raise
            raise OutboxError(cannot_connect(dsn, error)) from None
    counts = made.counts
    logging.getLogger("outbox.worker").info(
        "stopped: %s done, %s to try again, %s dead, %s lost", counts.done, counts.retried, counts.dead, counts.lost
    )
    if made.interrupted:
        # Threads of sync handlers can't be cancelled, and Python would wait for them.
        logging.shutdown()
        os._exit(1)


async def _run(made: Worker) -> None:
    def stop(name: str) -> None:
        logging.getLogger("outbox.worker").info("%s: stopping", name)
        made.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    await made.run()


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), default="-")
@click.option("--pipeline", required=True, metavar="NAME", help="The pipeline that the workflows start in.")
@app_option
@click.option("--skip-bad", is_flag=True, help="Leave broken lines out, count and report them.")
@json_option
@click.pass_obj
def submit(found: settings.Settings, file: Path, pipeline: str, app: str | None, skip_bad: bool, as_json: bool) -> None:
    """Start a workflow for each JSON line of FILE (default: standard input), all or none.

    \b
    {"entity_id": "post_123", "metadata": {"content": "hello"}}

    With --app the metadata is checked by the pipeline's model. An entity that is there already is counted as existing.
    """
    model = None
    if app:
        model = next((item for item in application.load(app) if item.name == pipeline), None)
        if model is None:
            raise SettingsError(f"--app {app} has no pipeline {pipeline!r}")
    if str(file) != "-" and not file.is_file():
        raise click.BadParameter(f"there is no file {printable(file)}", param_hint="FILE")
    with database(found) as conn, _progress(file) as (stream, on_bytes):
        migrations.require(conn)
        lines = bulk.Lines(model, skip_bad, on_bytes)
        with conn.transaction():
            started = submit_text(pipeline, conn, lines.items(bulk.bounded(stream)))
    for reason in lines.reasons:
        click.echo(f"skipped {printable(reason)}", err=True)
    if lines.skipped > len(lines.reasons):
        click.echo(f"… and {lines.skipped - len(lines.reasons)} more", err=True)
    result = {"submitted": started, "existing": lines.read - started, "skipped": lines.skipped}
    if as_json:
        screen.echo_json(result)
    else:
        click.echo(", ".join(f"{name} {count}" for name, count in result.items()))


@contextmanager
def _progress(file: Path) -> Iterator[tuple[IO[bytes], Callable[[int], None]]]:
    """Yield the file's stream and what to tell of bytes read: a bar on a terminal, else nothing."""
    piped = str(file) == "-"
    with click.open_file(str(file), "rb") as stream:
        if not sys.stderr.isatty():
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


@main.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every second, until Ctrl-C.")
@click.pass_obj
def status(found: settings.Settings, as_json: bool, watch: bool) -> None:
    """Show how many workflows stand where, what waits, runs and is dead, and the workers."""
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other")
    with database(found) as conn:
        migrations.require(conn)
        if as_json:
            screen.echo_json(inspect.status(conn))
        elif watch:
            screen.watch(lambda: screen.status(inspect.status(conn)))
        else:
            screen.console().print(screen.status(inspect.status(conn)))


@main.command()
@click.argument("entity")
@pipeline_option
@json_option
@click.pass_obj
def show(found: settings.Settings, entity: str, pipeline: str | None, as_json: bool) -> None:
    """Show the workflow of ENTITY: its data, its history, its job, its messages."""
    with database(found) as conn:
        migrations.require(conn)
        workflow = inspect.show(conn, inspect.find_one(conn, entity, pipeline))
    if as_json:
        screen.echo_json(workflow)
    else:
        screen.console().print(screen.workflow(workflow))


@main.command("set-status")
@click.argument("entity")
@click.argument("to_status", metavar="STATUS")
@click.option("--reason", help="Why; kept in the history.")
@click.option(
    "--by", metavar="NAME", default=getpass.getuser, help="Who; kept in the history. Default: your user name."
)
@pipeline_option
@click.pass_obj
def set_status(
    found: settings.Settings, entity: str, to_status: str, reason: str | None, by: str, pipeline: str | None
) -> None:
    """Move the workflow of ENTITY to STATUS, as a person does: legal changes only, with history."""
    with database(found) as conn:
        migrations.require(conn)
        workflow = inspect.find_one(conn, entity, pipeline)
        moved = inspect.set_status(conn, workflow["id"], to_status, actor=by, reason=reason)
    before = workflow["current_status"]
    click.echo(
        f"{printable(entity)}: {before} -> {to_status}" if moved else f"{printable(entity)} is in {to_status} already"
    )


@main.command()
@click.option("--pipeline", metavar="NAME", help="Only of this pipeline.")
@json_option
@click.pass_obj
def dead(found: settings.Settings, pipeline: str | None, as_json: bool) -> None:
    """List the jobs that used up their attempts or were rejected, the latest first."""
    with database(found) as conn:
        migrations.require(conn)
        rows = inspect.dead(conn, pipeline)
    if as_json:
        screen.echo_json(rows)
    elif rows:
        screen.console().print(screen.dead(rows))
    else:
        click.echo("no dead jobs")


@main.command()
@click.argument("entity", required=False)
@click.option("--all", "everything", is_flag=True, help="Every dead job.")
@click.option("--pipeline", metavar="NAME", help="Only of this pipeline.")
@click.pass_obj
def retry(found: settings.Settings, entity: str | None, everything: bool, pipeline: str | None) -> None:
    """Run the dead job of ENTITY again, with all its attempts; or --all of them."""
    if (entity is None) == (not everything):
        raise click.UsageError("give an ENTITY, or --all")
    with database(found) as conn:
        migrations.require(conn)
        if entity is None:
            click.echo(f"{inspect.retry_all(conn, pipeline)} jobs run again")
            return
        workflow = inspect.find_one(conn, entity, pipeline)
        if not inspect.retry(conn, workflow["id"]):
            raise OutboxError(
                f"{printable(entity)} in {workflow['current_status']} has no dead job: "
                "either its job is alive or no stage takes this status"
            )
    click.echo(f"{printable(entity)} runs again")


@main.command("doctor")
@app_option
@json_option
@click.pass_obj
def doctor_command(found: settings.Settings, app: str | None, as_json: bool) -> None:
    """Look for what is wrong or will be, and say what to do. Exits 1 if anything is bad."""
    pipelines = application.load(app or found.app) if app or found.app else []
    with database(found) as conn:
        findings = doctor.examine(conn, pipelines)
    if as_json:
        screen.echo_json([finding.as_row() for finding in findings])
    else:
        screen.console().print(screen.findings(findings))
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)


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
        return psycopg.connect(engine_conninfo(dsn, "cli"), autocommit=True)
    except psycopg.Error as error:
        raise OutboxError(cannot_connect(dsn, error)) from None


def explain(error: Exception) -> str:
    """Return an error in one line, with Postgres' hint if there is one."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        hint = f" ({error.diag.message_hint})" if error.diag.message_hint else ""
        return printable(f"{error.diag.message_primary}{hint}")
    return printable(" ".join(str(error).split()) or type(error).__name__)
