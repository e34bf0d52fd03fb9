"""Defines the commands that prepare the database: migrate and deploy."""

from __future__ import annotations

import sys
from typing import Any

import click

from .. import settings
from ..database import migrations
from ..definition import deploy
from ..definition.pipeline import Pipeline
from ..definition.stranded import report
from ..texts import printable
from . import application
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
    outbox_worker, outbox_viewer, outbox_operator, outbox_relay and outbox_consumer belong to the whole cluster and get
    their rights in this database. Put login roles into them: GRANT outbox_worker TO shop_worker. Later migrations keep
    the rights up to date. Creating roles takes CREATEROLE; --roles --sql prints the script for someone who has it.
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
    "--check", is_flag=True, help="Say what would change; exit 1 if workflows would be stranded. Changes nothing."
)
@click.option("--all", "every", is_flag=True, help="With --check: validate the data of all workflows, not of a sample.")
@click.option("--end-waits", is_flag=True, help="End waits in statuses that a stage takes from now on.")
@click.pass_obj
def deploy_command(found: settings.Settings, app: str | None, check: bool, every: bool, end_waits: bool) -> None:
    """Write a pipeline's statuses, legal changes, routes and schedules into the database.

    Refused, with a list, if workflows are in a status that the new version no longer knows, wait for a change that it
    no longer allows, or wait in a status that a stage would take. --check also lists the workflows whose stored data
    the new code can't read.
    """
    if every and not check:
        raise click.UsageError("--all needs --check")
    pipelines = application.load(app or found.app)
    stranded = False
    with database(found) as conn:
        migrations.require(conn)
        for pipeline in pipelines:
            if check:
                for line in _stranded(conn, pipeline, every):
                    click.echo(f"{pipeline.name}: {printable(line)}")
                    stranded = True
            lines = (deploy.check if check else deploy.deploy)(conn, pipeline, end_waits=end_waits)
            for line in lines:
                click.echo(f"{pipeline.name}: {printable(line)}")
            if not lines:
                click.echo(f"{pipeline.name}: nothing to change")
    if stranded:
        sys.exit(1)


def _stranded(conn: Any, pipeline: Pipeline[Any], every: bool) -> list[str]:
    def progress(count: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{count:,} checked", nl=False, err=True)

    return report(conn, pipeline, every=every, on_checked=progress)
