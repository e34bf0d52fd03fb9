"""Defines the commands that change workflows and stages by hand: set-status, cancel, retry, pause and resume."""

from __future__ import annotations

import click

from .. import settings
from ..client import dead, stages
from ..client.execute import drive
from ..client.move import move
from ..database import migrations
from ..errors import OutboxError
from ..operations import change, look
from ..texts import printable
from .connection import database
from .options import by_option, of_pipeline_option, pipeline_option


@click.command("set-status")
@click.argument("entity")
@click.argument("to_status", metavar="STATUS")
@click.option("--reason", help="The reason, kept in the history.")
@by_option
@pipeline_option
@click.pass_obj
def set_status(
    found: settings.Settings, entity: str, to_status: str, reason: str | None, by: str, pipeline: str | None
) -> None:
    """Move the workflow of ENTITY to STATUS. Only legal changes; the history keeps who moved it and why."""
    with database(found) as conn:
        migrations.require(conn)
        workflow = look.find_one(conn, entity, pipeline)
        status = move(workflow["pipeline"], conn, entity, to_status, by, reason)
    _say_moved(entity, workflow["current_status"], status)


@click.command()
@click.argument("entity")
@click.option("--reason", help="The reason, kept in the history.")
@by_option
@pipeline_option
@click.pass_obj
def cancel(found: settings.Settings, entity: str, reason: str | None, by: str, pipeline: str | None) -> None:
    """Cancel the workflow of ENTITY.

    Its job, its questions and its waits end, and so do the children that it waits for. It moves to the status that
    its pipeline has for this, Pipeline(..., cancelled="CANCELLED"), from any that is not final. What a running
    handler returns changes nothing.
    """
    with database(found) as conn:
        migrations.require(conn)
        workflow = look.find_one(conn, entity, pipeline)
        status = change.cancel(conn, workflow["pipeline"], entity, by=by, reason=reason)
    _say_moved(entity, workflow["current_status"], status)


def _say_moved(entity: str, before: str, status: str) -> None:
    click.echo(printable(f"{entity} is already in {status}" if before == status else f"{entity}: {before} -> {status}"))


@click.command()
@click.argument("entity", required=False)
@click.option("--all", "everything", is_flag=True, help="Every dead job.")
@click.option("--error", metavar="ERROR", help="With --all: only those that died of this error, or of its kind.")
@click.option("--reason", help="The reason, kept in `outbox.actions`.")
@by_option
@of_pipeline_option
@click.pass_obj
def retry(
    found: settings.Settings, entity: str | None, everything: bool, pipeline: str | None, error: str | None,
    reason: str | None, by: str,
) -> None:  # fmt: skip
    """Run the dead job of ENTITY again, with all its attempts. --all runs every dead job again."""
    if (entity is None) == (not everything):
        raise click.UsageError("give an ENTITY or --all")
    if error is not None and not everything:
        raise click.UsageError("--error goes with --all")
    with database(found) as conn:
        migrations.require(conn)
        if entity is None:
            made = dead.retry_all(conn, pipeline=pipeline, error=error, by=by, reason=reason)
            click.echo(f"{made} jobs run again")
            return
        workflow = look.find_one(conn, entity, pipeline)
        if not change.retry(conn, workflow["pipeline"], entity, by=by, reason=reason):
            raise OutboxError(
                f"{entity} in {workflow['current_status']} has no dead job: "
                "its job is alive, or no stage takes this status"
            )
    click.echo(f"{printable(entity)} runs again")


@click.command()
@click.argument("stage")
@click.option("--reason", help="The reason, kept in `outbox.pauses`.")
@by_option
@click.option("--pipeline", metavar="NAME", help="The pipeline, if several have this stage.")
@click.pass_obj
def pause(found: settings.Settings, stage: str, reason: str | None, by: str, pipeline: str | None) -> None:
    """Stop claiming jobs of STAGE in all workers. Running handlers finish; jobs wait.

    STAGE is "enrich" or, if several pipelines have it, "posts.enrich".
    """
    with database(found) as conn:
        migrations.require(conn)
        of, name = drive(conn, stages.find(stage, pipeline))
        paused = stages.pause(conn, name, pipeline=of, by=by, reason=reason)
    click.echo(printable(f"{of}.{name} is paused" if paused else f"{of}.{name} was already paused"))


@click.command()
@click.argument("stage")
@click.option("--reason", help="The reason, kept in `outbox.actions`.")
@by_option
@click.option("--pipeline", metavar="NAME", help="The pipeline, if several have this stage.")
@click.pass_obj
def resume(found: settings.Settings, stage: str, reason: str | None, by: str, pipeline: str | None) -> None:
    """Claim jobs of STAGE again, in all workers."""
    with database(found) as conn:
        migrations.require(conn)
        of, name = drive(conn, stages.find(stage, pipeline))
        resumed = stages.resume(conn, name, pipeline=of, by=by, reason=reason)
    click.echo(printable(f"{of}.{name} runs again" if resumed else f"{of}.{name} was not paused"))
