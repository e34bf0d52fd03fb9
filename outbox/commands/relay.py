"""Messages on their way out: `outbox relay` hands them on, `outbox parked` shows what could not go."""

from __future__ import annotations

import asyncio
import logging
import signal

import click

from .. import inspect, logs, migrations, screen, settings
from ..errors import OutboxError, SettingsError
from ..relay import Relay, Target
from .shared import database, dsn_of, json_option


@click.command()
@click.option("--name", default="default", show_default=True, help="The relay's name; each name gets every message.")
@click.option("--exchange", default="", help="The exchange to publish to; default: the one without a name.")
@click.option(
    "--declare",
    type=click.Choice(["topic", "direct", "fanout", "headers"]),
    help="Make the exchange, durable and of this type, if it isn't there.",
)
@click.option("--routing-key", default="{topic}", show_default=True, help="A template of {topic} and {key}.")
@click.option("--source", default="/outbox", show_default=True, help="The source in the CloudEvents headers.")
@click.option("--strict", is_flag=True, help="Keep the order of each key: one unconfirmed message of it at a time.")
@click.option("--drain", is_flag=True, help="Exit when no message is left.")
@click.option(
    "--log",
    "log_style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines look.",
)
@click.pass_obj
def relay(
    found: settings.Settings, name: str, exchange: str, declare: str | None, routing_key: str, source: str,
    strict: bool, drain: bool, log_style: str,
) -> None:  # fmt: skip
    """Hand messages on to RabbitMQ (OUTBOX_AMQP_URL), each at least once and confirmed, until SIGTERM or Ctrl-C.

    A message is moved on from when the broker has confirmed it; one that can't go out is parked with its reason (see
    outbox parked). A broker that is away costs nothing but time. A second process of the same name stands by.
    """
    logs.set_up(log_style)
    if declare and not exchange:
        raise click.UsageError("--declare needs --exchange")
    with dsn_of(found) as dsn:
        with database(found) as conn:
            migrations.require(conn)
        asyncio.run(_run(found, dsn, name, exchange, declare, routing_key, source, strict, drain))


async def _run(
    found: settings.Settings, dsn: str, name: str, exchange: str, declare: str | None, routing_key: str, source: str,
    strict: bool, drain: bool,
) -> None:  # fmt: skip
    made = Relay(found.listen_dsn or dsn, name=name, strict=strict, drain=drain)
    target, described = _rabbitmq(found, made, exchange, declare, routing_key, source, strict)
    made.to(target, described)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, made.stop)
    await made.run()
    logging.getLogger("outbox.relay").info("stopped: %s relayed, %s parked", made.relayed, made.parked)


def _rabbitmq(
    found: settings.Settings, made: Relay, exchange: str, declare: str | None, routing_key: str, source: str,
    strict: bool,
) -> tuple[Target, str]:  # fmt: skip
    if not found.amqp_url:
        raise SettingsError("where to? Set OUTBOX_AMQP_URL, such as amqp://user:password@localhost/")
    try:
        from ..rabbitmq.publisher import Publisher
    except ModuleNotFoundError as error:
        raise OutboxError(f'{error}. Run: pip install "outbox-engine[rabbitmq]"') from None
    publisher = Publisher(
        found.amqp_url,
        source=source,
        exchange=exchange,
        declare=declare,
        routing_key=routing_key,
        strict=strict,
        may_send=made.may_send,
        on_trouble=made.trouble,
    )
    return publisher, f"exchange {exchange or '(default)'}"


@click.command()
@click.argument("ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--retry", is_flag=True, help="Have them sent again by their relay: those with these IDs, or all.")
@click.option("--relay", "relay_name", metavar="NAME", help="Only of this relay.")
@json_option
@click.pass_obj
def parked(found: settings.Settings, ids: tuple[int, ...], retry: bool, relay_name: str | None, as_json: bool) -> None:
    """List the messages that could not be sent, with the reason; or have them sent again."""
    if ids and not retry:
        raise click.UsageError("an ID goes with --retry")
    with database(found) as conn:
        migrations.require(conn)
        if retry:
            click.echo(f"{inspect.retry_parked(conn, relay_name, list(ids) or None)} messages are sent again")
            return
        rows = inspect.parked(conn, relay_name)
    if as_json:
        screen.echo_json(rows)
    elif rows:
        screen.console().print(screen.parked(rows))
    else:
        click.echo("no message is parked")
