"""Defines the commands that show the state of things: status, show, dead, schedules and doctor."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from .. import settings
from ..database import hosts, migrations
from ..database.dsn import readable
from ..operations import cluster, doctor, look
from ..operations.finding import Finding
from . import application, screen
from .connection import asked, database
from .options import app_option, json_option, limit_option, of_pipeline_option, pipeline_option


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@click.pass_obj
def status(found: settings.Settings, as_json: bool, watch: bool) -> None:
    """Show the workflows per status, the jobs that wait, run or are dead, and the workers."""
    if watch and as_json:
        raise click.UsageError("--watch and --json exclude each other")
    # Ctrl-C may interrupt a query. The exception passes through `database`, which closes the connection.
    with suppress(*[KeyboardInterrupt] * watch), database(found) as conn:
        migrations.require(conn)
        if as_json:
            screen.echo_json(look.status(conn))
        elif watch:
            screen.watch(lambda: screen.status(look.status(conn)))
        else:
            screen.console().print(screen.status(look.status(conn)))


@click.command()
@click.argument("entity")
@pipeline_option
@limit_option
@click.option("--traceback", is_flag=True, help="Also show the traceback with which its job died.")
@json_option
@click.pass_obj
def show(
    found: settings.Settings, entity: str, pipeline: str | None, limit: int, traceback: bool, as_json: bool
) -> None:
    """Show the workflow of ENTITY: its data, history, job and messages.

    Of the history, messages and whatever else there are many of, it shows the latest.
    """
    with database(found) as conn:
        migrations.require(conn)
        workflow = look.show(conn, look.find_one(conn, entity, pipeline), limit)
    if as_json:
        screen.echo_json(workflow)
    else:
        screen.console().print(screen.workflow(workflow, traceback=traceback))


@click.command()
@of_pipeline_option
@limit_option
@json_option
@click.pass_obj
def dead(found: settings.Settings, pipeline: str | None, limit: int, as_json: bool) -> None:
    """List the jobs that used up their attempts or were rejected, latest first."""
    with database(found) as conn:
        migrations.require(conn)
        rows = look.dead(conn, pipeline, limit)
    if as_json:
        screen.echo_json(rows)
    elif rows:
        screen.console().print(screen.dead(rows))
    else:
        click.echo("no dead jobs")
    screen.echo_more(rows, as_json)


@click.command()
@json_option
@click.pass_obj
def schedules(found: settings.Settings, as_json: bool) -> None:
    """List the schedules: when each runs next, when it last ran, and its last error."""
    with database(found) as conn:
        migrations.require(conn)
        rows = look.schedules(conn)
    if as_json:
        screen.echo_json(rows)
    elif rows:
        screen.console().print(screen.schedules(rows))
    else:
        click.echo("no pipeline has a schedule")


@click.command("doctor")
@app_option
@json_option
@click.pass_obj
def doctor_command(found: settings.Settings, app: str | None, as_json: bool) -> None:
    """Look for present and coming problems, and say what to do. Exits with 1 if any is bad.

    Each host of the DSN is asked, also when none of them takes writes.
    """
    pipelines = application.load(app or found.app) if app or found.app else []
    findings: list[Finding] = []
    standings = asked(hosts.ask, found.dsn) if found.dsn and readable(found.dsn) else []
    if found.dsn:
        findings += cluster.hosts(found.dsn, standings)
    if len(standings) < 2 or not all(each.trouble for each in standings):
        with database(found) as conn:
            findings += doctor.examine(conn, pipelines)
    if as_json:
        screen.echo_json([finding.as_row() for finding in findings])
    else:
        screen.console().print(screen.findings(findings))
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)
