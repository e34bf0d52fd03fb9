"""`outbox worker`: a process that runs stages until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import click
import psycopg

from .. import application, logs, settings
from ..errors import OutboxError, SettingsError
from ..inbox import MEMORY_DAYS
from ..link import cannot_connect
from ..maintenance import MAX_DAYS, Retention
from ..worker import Worker
from .shared import Number, app_option, dsn_of


@click.command()
@app_option
@click.option("--stage", "stages", multiple=True, help="Serve only this stage; may be given again. Default: all.")
@click.option(
    "--concurrency", type=click.IntRange(1, 10_000), help="Attempts at once per stage, unless the stage says."
)
@click.option("--drain", is_flag=True, help="Exit when nothing is due.")
@click.option(
    "--lease",
    type=Number(0.5, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that a frozen worker keeps its jobs.",
)
@click.option(
    "--grace",
    type=Number(0, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that running handlers get after SIGTERM.",
)
@click.option(
    "--log",
    "log_style",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How log lines look.",
)
@click.option("--no-notify", is_flag=True, help="Poll only; don't LISTEN.")
@click.option(
    "--keep-workflows",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    help="Delete workflows that ended longer ago, with their history.",
)
@click.option("--keep-history", type=Number(0, MAX_DAYS), metavar="DAYS", help="Delete history that is older.")
@click.option(
    "--keep-dead",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    default=90.0,
    show_default=True,
    help="Drop the errors of jobs that died longer ago; that they are dead stays.",
)
@click.option(
    "--keep-messages",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    help="Delete messages that are older, if no relay is there to hand them on.",
)
@click.option(
    "--keep-inbox",
    type=Number(*MEMORY_DAYS),
    metavar="DAYS",
    default=90.0,
    show_default=True,
    help="Forget ids in the inbox that are older; consumers refuse such messages then.",
)
@click.pass_obj
def worker(
    found: settings.Settings, app: str | None, stages: tuple[str, ...], concurrency: int | None, drain: bool,
    lease: float, grace: float, log_style: str, no_notify: bool, keep_workflows: float | None,
    keep_history: float | None, keep_dead: float, keep_messages: float | None, keep_inbox: float,
) -> None:  # fmt: skip
    """Run the stages of an application, until SIGTERM or Ctrl-C.

    The first signal gives back what has not started and lets running handlers finish within the grace time; the
    second one stops at once. Any number of workers, on any number of machines, share the work.
    """
    logs.set_up(log_style)
    pipelines = application.load(app or found.app)
    if found.listen_dsn and not settings.readable(found.listen_dsn):
        raise SettingsError(f"OUTBOX_LISTEN_DSN can't be read: {settings.redact(found.listen_dsn)}")
    with dsn_of(found) as dsn:
        made = Worker(
            pipelines,
            dsn,
            stages=stages or None,
            concurrency=concurrency,
            listen_dsn=found.listen_dsn,
            lease=lease,
            grace=grace,
            drain=drain,
            notify=not no_notify,
            retention=Retention(keep_workflows, keep_history, keep_dead, keep_messages, keep_inbox),
        )
        try:
            asyncio.run(_run(made))
        except psycopg.Error as error:
            if error.diag.message_primary:  # a server's answer; else none was reached
                raise
            raise OutboxError(cannot_connect(dsn, error)) from None
    counts = made.counts
    logging.getLogger("outbox.worker").info(
        "stopped: %s done, %s to try again, %s dead, %s lost", counts.done, counts.retried, counts.dead, counts.lost
    )
    if made.interrupted:
        # Threads of sync handlers can't be cancelled, and Python would wait for them.
        logging.shutdown()
        os._exit(1)


async def _run(made: Worker) -> None:
    def stop(name: str) -> None:
        logging.getLogger("outbox.worker").info("%s: stopping", name)
        made.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    await made.run()
