"""Defines the command that erases an entity."""

from __future__ import annotations

from dataclasses import asdict

import click
import psycopg

from .. import settings
from ..client.erase import Erased
from ..database import migrations
from ..errors import OutboxError
from ..operations import change, look
from ..texts import printable
from .connection import database
from .options import by_option, json_option, pipeline_option
from .screen import echo_json


@click.command()
@click.argument("entity")
@click.option("--reason", help="The reason, kept in the history: name the request, not the person.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@by_option
@pipeline_option
@json_option
@click.pass_obj
def erase(
    found: settings.Settings, entity: str, reason: str | None, yes: bool, by: str, pipeline: str | None, as_json: bool
) -> None:
    """Erase the data of ENTITY, and every text that Outbox has of it. For the owner of the schema.

    Gone are the data, the results and large contents of its handlers, its questions with their answers' reasons and
    edits, the payloads of its signals, errors, the reasons in its history, the reactions to its changes, and the
    messages that are still here. What happened, when and by whom stays, with a line that says who has erased the
    rest. It can't be undone.

    A workflow that has not ended is cancelled first: what a running handler returns changes nothing.

    \b
    What it can't reach, it names:
      messages that were published, by topic    ask those who receive them
      parents and children                      erase them, too
      backups, standbys' archives, your logs    keep them no longer than you may
    An entity's id stays: it is how the history is found.
    """
    with database(found) as conn:
        migrations.require(conn)
        workflow = look.find_one(conn, entity, pipeline)
        if not yes:
            which = f"{entity} of pipeline {workflow['pipeline']}, which is in {workflow['current_status']}"
            click.confirm(printable(f"Erase {which}, for good?"), abort=True, err=True)
        try:
            erased = change.erase(conn, workflow["pipeline"], entity, by=by, reason=reason)
        except psycopg.errors.InsufficientPrivilege as error:
            raise OutboxError("erasing is for the owner of the schema outbox: see docs/roles.md") from error
    if as_json:
        echo_json(asdict(erased))
    else:
        for line in _lines(erased):
            click.echo(printable(line))


def _lines(erased: Erased) -> list[str]:
    gone = {
        "messages that were not sent": erased.unsent,
        "parked messages": erased.parked,
        "parked deliveries": erased.parked_deliveries,
        "reactions": erased.reactions - erased.reactions_not_run,
        "reactions that had not run": erased.reactions_not_run,
    }
    return [
        f"{erased.entity_id} of pipeline {erased.pipeline} is erased. It is in {erased.status}",
        *(f"gone: {what}: {number}" for what, number in gone.items() if number),
        *(f"out of reach: messages that were published to {topic}: {n}" for topic, n in erased.published.items()),
        *(
            [f"not gone: contents that other workflows have, too: {erased.blobs_of_others}"]
            * bool(erased.blobs_of_others)
        ),
        *(f"not erased: {entity} of pipeline {pipeline}, a parent or a child" for pipeline, entity in erased.relatives),
    ]
