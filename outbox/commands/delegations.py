"""Defines the commands for delegations: they let people vote in others' place, and list who may."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from .. import settings
from ..client import delegations
from ..client.acting import act_as
from ..database import migrations
from ..operations import look
from ..texts import printable
from . import screen
from .connection import database
from .options import Age, Time, json_option, limit_option, user_name


@click.command()
@click.argument("person")
@click.option("--for", "length", metavar="AGE", type=Age(), help="How long, such as 2h or 14d.")
@click.option(
    "--until",
    metavar="TIME",
    type=Time(),
    help="The end instead, such as 2027-01-08 or 2027-01-08T18:00+01:00. Without a zone, the one of this machine.",
)
@click.option("--end", is_flag=True, help="End the delegation now. Votes that were cast stay.")
@click.option(
    "--by",
    metavar="NAME",
    help="Who delegates, if you may speak for others. Default: your login in the database, or else your user name.",
)
@click.option(
    "--group",
    "groups",
    metavar="NAME",
    multiple=True,
    help="A group of who delegates, if you may speak for others. May be repeated.",
)
@click.option("--reason", help="The reason, kept with the delegation.")
@click.pass_obj
def delegate(
    found: settings.Settings, person: str, length: float | None, until: datetime | None, end: bool, by: str | None,
    groups: Sequence[str], reason: str | None,
) -> None:  # fmt: skip
    """Let PERSON vote in your place until an end.

    --for or --until says when that is. The votes of PERSON on questions that have approvers then count for you, one for
    each question. If you vote, too, your vote replaces theirs. Who has asked a question doesn't vote on it in anybody's
    place. A second delegation to PERSON replaces the first. `outbox delegations` lists who votes in whose place.
    """
    if (length is not None) + (until is not None) + end != 1:
        raise click.UsageError("give one of --for, --until and --end")
    if end and (groups or reason is not None):
        raise click.UsageError("--end takes neither --group nor --reason")
    place = "your place" if by is None else f"the place of {by}"
    with database(found) as conn:
        migrations.require(conn)
        with conn.transaction():
            act_as(conn, user_name())
            if end:
                ended = delegations.end_delegation(conn, person, by=by)
                said = f"{person} no longer votes in {place}" if ended else f"{person} did not vote in {place}"
            else:
                if until is None:
                    until = look.now(conn) + timedelta(seconds=length or 0)
                delegations.delegate(conn, person, until=until, by=by, groups=groups or None, reason=reason)
                said = f"{person} votes in {place} until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    click.echo(printable(said))


@click.command("delegations")
@click.option("--person", metavar="NAME", help="Only those of this person and to this person.")
@limit_option
@json_option
@click.pass_obj
def delegations_command(found: settings.Settings, person: str | None, limit: int, as_json: bool) -> None:
    """List who may vote in whose place, and until when. Delegations that have ended are left out."""
    with database(found) as conn:
        migrations.require(conn)
        rows = look.delegations(conn, person=person, limit=limit)
    screen.echo_list(rows, screen.delegations, "nothing is delegated", as_json=as_json)
