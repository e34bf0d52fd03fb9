"""Defines the commands for waits: they list open questions, decide them, and send signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from .. import settings
from ..client import approvals, signals
from ..client.acting import act_as
from ..client.why import why
from ..database import migrations
from ..definition.pipeline import Pipeline
from ..errors import OutboxError
from ..operations import look
from ..texts import printable
from . import application, screen
from .connection import database
from .options import (
    app_option,
    from_json,
    json_option,
    limit_option,
    of_pipeline_option,
    pipeline_option,
    user_name,
)


@click.command("approvals")
@of_pipeline_option
@click.option("--assignee", metavar="NAME", help="Only questions for this person.")
@limit_option
@json_option
@click.pass_obj
def approvals_command(
    found: settings.Settings, pipeline: str | None, assignee: str | None, limit: int, as_json: bool
) -> None:
    """List the questions that wait for a person, oldest first."""
    with database(found) as conn:
        migrations.require(conn)
        rows = look.approvals(conn, pipeline=pipeline, assignee=assignee, limit=limit)
    how = "Decide with: outbox approve ENTITY, outbox reject ENTITY, or outbox decide ENTITY OPTION"
    screen.echo_list(rows, screen.approvals, "nothing waits for an approval", as_json=as_json, then=how)


def _decision(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that all decisions have."""
    for option in reversed((
        click.option("--question", metavar="ID", type=click.UUID,
                     help="The question that is answered, as `outbox approvals` lists it, if several are open."),
        click.option("--by", metavar="NAME",
                     help="Who decides. Default: your user name; if votes are counted, your login in the database."),
        click.option("--reason", help="The reason, kept in the history."),
        click.option("--edit", metavar="JSON",
                     help="The new data of the workflow, all of it. Needs --app, whose model validates it."),
        click.option("--about", metavar="JSON",
                     help="What replaces the data of a question that has data of its own."),
        click.option("--group", "groups", metavar="NAME", multiple=True,
                     help="A group of the person, if you may speak for others. May be repeated."),
        click.option("--shown", metavar="HASH",
                     help="The hash of the data that you looked at, if it has changed since the question was asked."),
        pipeline_option,
        app_option,
    )):  # fmt: skip
        command = option(command)
    return command


@click.command()
@click.argument("entity")
@click.argument("option")
@_decision
@click.pass_obj
def decide(found: settings.Settings, /, entity: str, option: str, **how: Any) -> None:
    """Answer an open question of ENTITY with one of its options. The first decision wins.

    If the question has approvers, the answer is a vote. The last one that is needed decides.
    """
    _decide(found, entity, option, **how)


@click.command()
@click.argument("entity")
@_decision
@click.pass_obj
def approve(found: settings.Settings, /, entity: str, **how: Any) -> None:
    """Answer an open question of ENTITY with "approve". The first decision wins."""
    _decide(found, entity, "approve", **how)


@click.command()
@click.argument("entity")
@_decision
@click.pass_obj
def reject(found: settings.Settings, /, entity: str, **how: Any) -> None:
    """Answer an open question of ENTITY with "reject". The first decision wins."""
    _decide(found, entity, "reject", **how)


def _decide(
    found: settings.Settings,
    entity: str,
    option: str,
    by: str | None,
    edit: str | None,
    about: str | None,
    groups: Sequence[str],
    pipeline: str | None,
    app: str | None,
    **answer: Any,
) -> None:
    edited, replaced = from_json(edit, "--edit"), from_json(about, "--about")
    with database(found) as conn:
        migrations.require(conn)
        before = look.find_asking(conn, entity, pipeline)
        name = before["pipeline"]
        known: Pipeline[Any] | str = name if edit is None else _pipeline(app or found.app, name)
        with conn.transaction():
            act_as(conn, user_name())
            status = approvals.decide(
                conn, known, entity, option, by=by, edit=edited, about=replaced, groups=groups or None, **answer
            )
        stays = why(conn, name, entity).sentence if status == before["current_status"] else None
    click.echo(printable(f"{entity}: {option}{f' by {by}' if by else ''} -> {status}"))
    if stays:
        click.echo(stays)


def _pipeline(app: str | None, name: str) -> Pipeline[Any]:
    if app is None:
        raise OutboxError(
            f"--edit needs the pipeline {name}, which validates it: give --app MODULE:OBJECT or set OUTBOX_APP"
        )
    return application.find(app, name)


@click.command()
@click.argument("entity")
@click.argument("name")
@click.argument("payload", required=False)
@click.option(
    "--id", "signal_id", metavar="ID", help="The sender's own id. A second signal with the same id has no effect."
)
@pipeline_option
@click.pass_obj
def signal(
    found: settings.Settings, entity: str, name: str, payload: str | None, signal_id: str | None, pipeline: str | None
) -> None:
    """Send the signal NAME to ENTITY, with PAYLOAD as JSON. It is kept until the workflow waits for it."""
    told = from_json(payload, "PAYLOAD")
    with database(found) as conn:
        migrations.require(conn)
        owner = look.find_one(conn, entity, pipeline)["pipeline"]
        sent = signals.signal(conn, owner, entity, name, told, id=signal_id)
        ended = look.is_final(conn, owner, sent.status)
    what = "taken" if sent.taken else "too late, the workflow has ended" if ended else "kept until it is waited for"
    click.echo(
        printable(f"{entity}: {name} {what if sent.created else f'was sent before, {what}'}; it is in {sent.status}")
    )
    if sent.doubt and not ended:
        click.echo(f"warning: {printable(sent.doubt)}", err=True)
