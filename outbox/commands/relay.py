"""Defines `outbox relay`, which delivers messages, and `outbox parked`, for those that could not be sent or handled."""

from __future__ import annotations

import logging
from typing import Any

import click

from .. import settings
from ..database import migrations, urls
from ..database.dsn import readable, redact
from ..errors import OutboxError, SettingsError
from ..messages.handoff import Handoff
from ..messages.relay import GRACE, Relay
from ..messages.target import Target
from ..operations import change, look
from ..process import ending
from ..process.signals import on_signals
from ..texts import printable
from . import application, logs, screen
from .connection import database, dsn_of, listening_dsn, reaching
from .options import LogOptions, json_option, limit_option, log_options

log = logging.getLogger("outbox.relay")


class Part(click.ParamType):  # type: ignore[type-arg]  # it takes an argument since click 8.4
    """N/M, such as 2/4."""

    name = "N/M"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        number, _, of = str(value).partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            self.fail(f"{value!r} is not N/M with N from 0 to M-1, such as 2/4", param, ctx)
        return int(number), int(of)


@click.command()
@click.option("--name", default="default", show_default=True, help="The relay's name. Each name gets every message.")
@click.option("--exchange", default="", help="The exchange to publish to. Default: RabbitMQ's default exchange.")
@click.option(
    "--declare",
    type=click.Choice(["topic", "direct", "fanout", "headers"]),
    help="Declare the exchange, durable and of this type, if it doesn't exist.",
)
@click.option("--routing-key", default="{topic}", show_default=True, help="Template with {topic} and {key}.")
@click.option("--source", default="/outbox", show_default=True, help="The source in the CloudEvents headers.")
@click.option(
    "--to",
    envvar="OUTBOX_TO_DSN",
    metavar="DSN",
    help="Deliver messages to another Postgres instead, where each becomes a workflow of --pipeline. "
    "OUTBOX_TO_DSN does the same, and process lists don't show it.",
)
@click.option("--pipeline", metavar="NAME", help="With --to: the pipeline there.")
@click.option(
    "--topic", "topics", multiple=True, metavar="PATTERN", help="With --to: only such topics (* and ?); repeatable."
)
@click.option(
    "--entity-id",
    default="{key}",
    show_default=True,
    help="With --to: template with {key}, {topic} and {message_id}.",
)
@click.option("--shard", "part", type=Part(), help="With --to: only the entities that belong to database N of M.")
@click.option(
    "--target",
    "own_target",
    metavar="MODULE:OBJECT",
    help="Deliver messages by a target of your own instead: a Target, or a class or function that makes one.",
)
@click.option("--from-now", is_flag=True, help="If the name is new: skip the messages that are already in the log.")
@click.option(
    "--change-settings",
    is_flag=True,
    help="Begin with another target, pipeline, topic, entity id or shard than the name had, though messages are left.",
)
@click.option("--strict", is_flag=True, help="Keep the order of each key, with one unconfirmed message per key.")
@click.option("--drain", is_flag=True, help="Exit when no message is left; fail if no server answers.")
@click.option(
    "--forget",
    metavar="NAME",
    help="Only forget a relay that is gone for good. Deletes its parked messages; the log is no longer kept for it.",
)
@log_options
@click.pass_obj
def relay(
    found: settings.Settings, name: str, exchange: str, declare: str | None, routing_key: str, source: str,
    to: str | None, pipeline: str | None, topics: tuple[str, ...], entity_id: str, part: tuple[int, int] | None,
    own_target: str | None, from_now: bool, change_settings: bool, strict: bool, drain: bool, forget: str | None,
    log_to: LogOptions,
) -> None:  # fmt: skip
    """Deliver messages to RabbitMQ, each at least once.

    It runs until SIGTERM or Ctrl-C. OUTBOX_AMQP_URL names the broker. The relay moves past a message when the
    broker has confirmed it. A message that can't be sent is parked with the reason (see outbox parked). While the
    broker is down, messages wait. A second process of the same name stands by. A name that has messages left is
    refused with another exchange, --to, --pipeline, --topic, --entity-id or --shard. The relay waits for a database
    that isn't there yet.

    With --to, messages become workflows in another Postgres, each once, in one transaction with the inbox there.
    """
    if forget is not None:
        _forget(found, forget)
        return
    logs.set_up(*log_to)
    if declare and not exchange:
        raise click.UsageError("--declare needs --exchange")
    if bool(to) != bool(pipeline):
        raise click.UsageError("--to and --pipeline go together")
    if own_target and (to or exchange):
        raise click.UsageError("--target excludes --to and --exchange")
    if (topics or part) and not to:
        raise click.UsageError("--topic and --shard need --to; with RabbitMQ, queues choose by their bindings")
    with dsn_of(found) as dsn:
        target: Target
        if own_target:
            target = application.target(own_target)
        elif to and pipeline:
            to = urls.libpq(to)
            if not readable(to):
                raise SettingsError(f"--to can't be read: {redact(to)}")
            target = Handoff(to, pipeline, entity_id=entity_id, topics=topics, part=part, strict=strict)
        else:
            target = _publisher(
                found, source=source, exchange=exchange, declare=declare, routing_key=routing_key, strict=strict
            )
        direct = listening_dsn(found) or dsn
        made = Relay(
            direct, target,
            name=name, strict=strict, drain=drain, from_now=from_now, change_settings=change_settings,
        )  # fmt: skip
        with reaching(direct):
            _, left = ending.run(_run(made))
    ending.finish(left)


def _forget(found: settings.Settings, name: str) -> None:
    with database(found) as conn:
        migrations.require(conn)
        parked = change.forget_relay(conn, name)
    click.echo(f"relay {printable(name)} is forgotten, with {parked} parked messages")


async def _run(made: Relay) -> None:
    on_signals(made.stop, GRACE)
    await made.run()
    log.info("stopped: %s relayed, %s parked", made.relayed, made.parked)


def _publisher(found: settings.Settings, **options: Any) -> Target:
    if not found.amqp_url:
        raise SettingsError(
            "no target: set OUTBOX_AMQP_URL, such as amqp://user:password@localhost/, or give --to or --target"
        )
    try:
        from ..messages.rabbitmq.publisher import Publisher
    except ModuleNotFoundError as error:
        raise OutboxError(f'{error}. Run: pip install "outbox-engine[rabbitmq]"') from None
    return Publisher(found.amqp_url, **options)


@click.command()
@click.argument("ids", type=click.IntRange(1, 2**63 - 1), nargs=-1, metavar="[ID]...")
@click.option("--retry", is_flag=True, help="Try messages again: those with these IDs, or all.")
@click.option("--relay", "relay_name", metavar="NAME", help="Only messages that this relay could not send.")
@click.option("--consumer", metavar="NAME", help="Only messages that this consumer could not handle.")
@limit_option
@json_option
@click.pass_obj
def parked(
    found: settings.Settings, ids: tuple[int, ...], retry: bool, relay_name: str | None, consumer: str | None,
    limit: int, as_json: bool,
) -> None:  # fmt: skip
    """List messages that could not be sent or handled.

    --retry tries them again. An ID counts for one relay or consumer. If several have the same, say which one with
    --relay or --consumer.
    """
    if ids and not retry:
        raise click.UsageError("an ID needs --retry")
    if relay_name is not None and consumer is not None:
        raise click.UsageError("--relay and --consumer exclude each other")
    with database(found) as conn:
        migrations.require(conn)
        if retry:
            tried = change.retry_parked(conn, relay=relay_name, consumer=consumer, ids=ids)
            click.echo(f"{tried} messages are tried again")
            return
        rows = look.parked(conn, relay=relay_name, consumer=consumer, limit=limit)
    screen.echo_list(rows, screen.parked, "no message is parked", as_json=as_json)
