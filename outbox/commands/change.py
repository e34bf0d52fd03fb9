"""Defines the commands that change workflows and stages by hand: set-status, cancel, retry, pause and resume."""

from __future__ import annotations

import click

from .. import settings
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
        moved = change.set_status(conn, workflow["id"], to_status, actor=by, reason=reason)
    before = workflow["current_status"]
    click.echo(printable(f"{entity}: {before} -> {to_status}" if moved else f"{entity} is already in {to_status}"))


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
    before = workflow["current_status"]
    click.echo(printable(f"{entity} is already in {status}" if before == status else f"{entity}: {before} -> {status}"))


@click.command()
@click.argument("entity", required=False)
@click.option("--all", "everything", is_flag=True, help="Every dead job.")
@of_pipeline_option
@click.pass_obj
def retry(found: settings.Settings, entity: str | None, everything: bool, pipeline: str | None) -> None:
    """Run the dead job of ENTITY again, with all its attempts. --all runs every dead job again."""
    if (entity is None) == (not everything):
        raise click.UsageError("give an ENTITY or --all")
    with database(found) as conn:
        migrations.require(conn)
        if entity is None:
            click.echo(f"{change.retry_all(conn, pipeline)} jobs run again")
            return
        workflow = look.find_one(conn, entity, pipeline)
        if not change.retry(conn, workflow["id"]):
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
        of, name = change.find_stage(conn, stage, pipeline)
        paused = change.pause(conn, of, name, by=by, reason=reason)
    click.echo(printable(f"{of}.{name} is paused" if paused else f"{of}.{name} was already paused"))


@click.command()
@click.argument("stage")
@click.option("--pipeline", metavar="NAME", help="The pipeline, if several have this stage.")
@click.pass_obj
def resume(found: settings.Settings, stage: str, pipeline: str | None) -> None:
    """Claim jobs of STAGE again, in all workers."""
    with database(found) as conn:
        migrations.require(conn)
        of, name = change.find_stage(conn, stage, pipeline)
        resumed = change.resume(conn, of, name)
    click.echo(printable(f"{of}.{name} runs again" if resumed else f"{of}.{name} was not paused"))
