"""Defines the commands that prepare the database: migrate, deploy and drop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from .. import settings
from ..database import migrations
from ..definition import dead_ends, deploy, stranded
from ..definition.pipeline import Pipeline
from ..errors import OutboxError, Stranded
from ..operations import drop
from ..texts import number, printable
from . import application, processes
from .connection import database
from .options import app_option


@click.command()
@click.option(
    "--check", is_flag=True, help="Say what is missing or has changed; exit 1 if anything is. Changes nothing."
)
@click.option("--sql", "as_sql", is_flag=True, help="Print the pending SQL as a script for psql. Changes nothing.")
@click.option("--roles", is_flag=True, help="Also create groups for login roles, with their rights.")
@click.pass_obj
def migrate(found: settings.Settings, check: bool, as_sql: bool, roles: bool) -> None:
    """Create the schema `outbox`, or update it. Safe to run from anywhere, any number of times.

    The role that migrates owns the schema. With --roles, all other roles need less: the groups outbox_submitter,
    outbox_worker, outbox_viewer, outbox_operator, outbox_relay, outbox_consumer and outbox_spokesman belong to the
    whole cluster and get their rights in this database. Put login roles into them: GRANT outbox_worker TO shop_worker.
    Later migrations keep the rights up to date. Creating roles takes CREATEROLE; --roles --sql prints the script for
    someone who has it.
    """
    if check and roles:
        raise click.UsageError("--check and --roles exclude each other")
    with database(found, migrated=False) as conn:
        pending, recorded = migrations.pending(conn), migrations.applied(conn)
        for name in migrations.newer(conn):
            click.echo(
                f"the database has {printable(name)}, which this Outbox doesn't know: "
                "it was migrated by a later release",
                err=True,
            )
        if as_sql:
            wanted = bool(pending or roles)
            click.echo(migrations.script(conn, roles=roles) if wanted else "-- nothing is pending", nl=not wanted)
        elif check:
            for migration in pending:
                click.echo(f"{'changed' if migration.name in recorded else 'pending'} {migration.name}")
            if pending:
                sys.exit(1)
            click.echo("the schema is up to date")
        else:
            for name in migrations.apply(conn):
                click.echo(f"applied {name}")
            click.echo("the schema is up to date")
            if roles:
                migrations.make_roles(conn)
                click.echo("the groups have their rights; put login roles into them: GRANT outbox_worker TO …")


@click.command("deploy")
@app_option
@click.option(
    "--check",
    is_flag=True,
    help="Say what would change; exit 1 if it would be refused, or data could not be read. Changes nothing.",
)
@click.option("--all", "every", is_flag=True, help="With --check: validate the data of all workflows, not of a sample.")
@click.option("--end-waits", is_flag=True, help="End waits in statuses that a stage takes from now on.")
@click.option("--strict", is_flag=True, help="Refuse dead ends, and stages and statuses that nothing leads to.")
@click.option("--stop-pipe", type=int, hidden=True)  # of `outbox dev`
@click.pass_obj
def deploy_command(
    found: settings.Settings, app: str | None, check: bool, every: bool, end_waits: bool, strict: bool,
    stop_pipe: int | None,
) -> None:  # fmt: skip
    """Write the pipelines of an application into the database.

    These are their statuses, legal changes, routes and schedules. Refused, with a list, if workflows are in a
    status that the new version no longer knows, wait for a change that it no longer allows, or wait in a status
    that a stage would take. --check also lists the workflows whose stored data the new code can't read. Warns of
    dead ends, of stages and statuses that nothing leads to, and of workflows that wait for nothing.
    """
    if every and not check:
        raise click.UsageError("--all needs --check")
    with processes.ends_with_parent(stop_pipe):
        _deploy(found, application.load(app or found.app), check, every, end_waits, strict)


def _deploy(
    found: settings.Settings, pipelines: Sequence[Pipeline[Any]], check: bool, every: bool, end_waits: bool,
    strict: bool,
) -> None:  # fmt: skip
    refused = False
    with database(found) as conn:
        migrations.require(conn)
        for pipeline in pipelines if strict else ():  # before any of them is written
            dead_ends.refuse(pipeline)
        for pipeline in pipelines:
            try:
                lines = (deploy.check if check else deploy.deploy)(conn, pipeline, end_waits=end_waits)
            except Stranded as error:
                _echo(pipeline, [f"refused: {problem}" for problem in error.problems], err=True)
                if not check:
                    raise OutboxError(
                        f'pipeline "{pipeline.name}" was not deployed, and nothing of it changed'
                    ) from None
                refused = True
            else:
                _echo(pipeline, lines or ["nothing to change"])
            if check:
                broken = list(stranded.unreadable(conn, pipeline, every=every, on_checked=_progress("checked")))
                _echo(pipeline, broken)
                refused = refused or bool(broken)
            for warning in (*dead_ends.look(pipeline), *dead_ends.unattended(conn, pipeline.name)):
                click.echo(f"warning: {pipeline.name}: {printable(warning)}", err=True)
    if refused:
        sys.exit(1)


@click.command("drop")
@click.argument("pipeline")
@click.option("--with-workflows", is_flag=True, help="Delete its workflows, too, whatever they are at.")
@click.option("--with-history", is_flag=True, help="With --with-workflows: delete their history, too.")
@click.option("--yes", is_flag=True, help="Do it. Without it, the command says what it would delete.")
@click.pass_obj
def drop_command(found: settings.Settings, pipeline: str, with_workflows: bool, with_history: bool, yes: bool) -> None:
    """Delete PIPELINE from the database.

    Its statuses, routes, schedules, pauses and reactions go with it. Refused if it has workflows, unless
    --with-workflows deletes them. Their history stays until retention deletes it, unless --with-history does. Stop
    the programs that start workflows in it first.
    """
    if with_history and not with_workflows:
        raise click.UsageError("--with-history needs --with-workflows")
    with database(found) as conn:
        migrations.require(conn)
        names = drop.belongings(conn, pipeline)
        if not yes:
            for name, count in names.items():
                click.echo(printable(f"{name}: {number(count, 'workflow')}"))
            how = "--yes" if with_workflows or not any(names.values()) else "--with-workflows --yes"
            raise click.UsageError(f"nothing was deleted: to delete all of this, repeat the command with {how}")
        deleted = drop.drop(
            conn, pipeline, with_workflows=with_workflows, with_history=with_history, on_deleted=_progress("deleted")
        )
    click.echo(printable(f"{pipeline} is dropped, with {number(deleted, 'workflow')}"))


def _progress(what: str) -> Callable[[int], None]:
    """Returns a function that shows a count on a terminal."""

    def progress(count: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{count:,} {what}", nl=False, err=True)

    return progress


def _echo(pipeline: Pipeline[Any], lines: list[str], err: bool = False) -> None:
    for line in lines:
        click.echo(f"{pipeline.name}: {printable(line)}", err=err)
