"""Defines the commands that show the state of things: status, list, show, dead, effects, schedules and doctor."""

from __future__ import annotations

import shlex
import sys
from contextlib import suppress
from typing import Any

import click

from .. import settings
from ..client import lists
from ..database import hosts, migrations
from ..database.dsn import readable
from ..operations import cluster, doctor, look
from ..operations.finding import Finding
from . import application, screen
from .connection import asked, database, given_dsn
from .options import Age, app_option, json_option, limit_option, of_pipeline_option, pipeline_option


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
@click.pass_obj
def status(found: settings.Settings, as_json: bool, watch: bool) -> None:
    """Show the workflows and jobs of each status, and the workers.

    The statuses of a pipeline come in the order in which workflows go through them.
    """
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
    """Show the workflow of ENTITY, and why it does not move.

    The first line says why it does not move, and what to do. Its data, history, job and messages follow. Of the
    history, messages and whatever else there are many of, it shows the latest.
    """
    with database(found) as conn:
        migrations.require(conn)
        workflow = look.show(conn, look.find_one(conn, entity, pipeline), limit)
    if as_json:
        screen.echo_json(workflow)
    else:
        screen.console().print(screen.workflow(workflow, traceback=traceback))


@click.command("list")
@of_pipeline_option
@click.option("--status", metavar="STATUS", help="Only those in this status.")
@click.option(
    "--older", metavar="TIME", type=Age(), help="Only those that came to their status longer ago: 90s, 15m, 2h, 3d."
)
@click.option("--entity", metavar="PREFIX", help="Only those whose entity begins with this.")
@click.option("--assignee", metavar="NAME", help="Only those that ask this person.")
@click.option(
    "--waits-for",
    metavar="WHAT",
    help='Only those that wait for it: approval, signal, "signal NAME", children, deadline, timer, worker or change.',
)
@click.option("--dead", is_flag=True, help="Only those whose job is dead.")
@click.option("--error", metavar="ERROR", help="Only those that are dead of this error, or of its kind.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1, lists.MOST),
    default=look.MOST,
    show_default=True,
    help="How many on a page.",
)
@click.option("--after", metavar="CURSOR", help="Go on after a page: the cursor that its last line, or its JSON, has.")
@json_option
@click.pass_obj
def list_command(found: settings.Settings, /, as_json: bool, **asked: Any) -> None:
    """List workflows, a page at a time.

    Those that have not ended come in the order in which they came to their status, dead ones the latest first, those of
    an entity prefix by entity, questions the oldest first, and all others the newest first.
    """
    with database(found) as conn:
        migrations.require(conn)
        page = look.workflows(conn, **asked)
    if as_json:
        screen.echo_json(page)
        return
    if page["workflows"]:
        screen.console().print(screen.workflows(page["workflows"]))
    if page["bounded"]:
        click.echo("as many workflows were looked at as one page may look at: there may be more")
    elif not page["workflows"]:
        click.echo("no such workflows")
    if page["after"]:
        click.echo(f"go on with --after {shlex.quote(page['after'])}")


@click.command()
@of_pipeline_option
@click.option("--error", metavar="ERROR", help="Only those that died of this error, or of its kind.")
@click.option("--kinds", is_flag=True, help="Show how many died of each kind of error instead.")
@limit_option
@json_option
@click.pass_obj
def dead(
    found: settings.Settings, pipeline: str | None, error: str | None, kinds: bool, limit: int, as_json: bool
) -> None:
    """List the dead jobs, the latest first.

    They have used up their attempts, or were rejected. `outbox retry` runs them again. The kind of an error is its
    first line without ids and numbers.
    """
    with database(found) as conn:
        migrations.require(conn)
        rows = look.errors(conn, pipeline, error) if kinds else look.dead(conn, pipeline, limit, error)
    screen.echo_list(rows, screen.errors if kinds else screen.dead, "no dead jobs", as_json=as_json)


@click.command("effects")
@of_pipeline_option
@click.option("--unknown", is_flag=True, help="Only those that may or may not have happened, the oldest first.")
@limit_option
@json_option
@click.pass_obj
def effects_command(found: settings.Settings, pipeline: str | None, unknown: bool, limit: int, as_json: bool) -> None:
    """List effects, and what is known of each.

    An effect is a call that must not happen twice, such as a payment. If it is not known whether it has happened, the
    next attempt finds out, or a person is asked. The latest comes first.
    """
    with database(found) as conn:
        migrations.require(conn)
        rows = look.effects(conn, pipeline=pipeline, unknown=unknown, limit=limit)
    how = "Answer those that are asked with: outbox decide ENTITY yes, no or repeat" if unknown else ""
    screen.echo_list(rows, screen.effects, "no effects", as_json=as_json, then=how)


@click.command()
@json_option
@click.pass_obj
def schedules(found: settings.Settings, as_json: bool) -> None:
    """List the schedules: when each runs next, and its last error."""
    with database(found) as conn:
        migrations.require(conn)
        rows = look.schedules(conn)
    screen.echo_list(rows, screen.schedules, "no pipeline has a schedule", as_json=as_json)


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
    dsn = given_dsn(found)
    standings = asked(hosts.ask, dsn) if dsn and readable(dsn) else []
    if dsn:
        findings += cluster.hosts(dsn, standings)
    if len(standings) < 2 or not all(each.trouble for each in standings):
        with database(found) as conn:
            findings += doctor.examine(conn, pipelines)
    if as_json:
        screen.echo_json([finding.as_row() for finding in findings])
    else:
        screen.console().print(screen.findings(findings))
    if any(finding.level == "bad" for finding in findings):
        sys.exit(1)
