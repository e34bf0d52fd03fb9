"""Defines `outbox worker`, which runs stages until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os

import click

from .. import settings
from ..client.inbox import MEMORY_DAYS
from ..engine.retention import MAX_DAYS, Retention
from ..engine.worker import Worker
from ..errors import WorkerBroken
from ..process import ending
from . import application, logs, processes
from .connection import dsn_of, listening_dsn, reaching, require_database
from .options import LogOptions, Number, app_option, log_options

log = logging.getLogger("outbox.worker")

COLLECT_AFTER = (20_000, 20, 50)
"""New objects, and collections of the younger generation, after which a generation is collected.

What a step makes goes without a collection, since it has no cycles.
"""
_DEFAULTS = gc.get_threshold()


@click.command()
@app_option
@click.option("--stage", "stages", multiple=True, help="Serve only this stage; repeatable. Default: all.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    help="Concurrent attempts per stage in this process. A stage's own `concurrency` holds across all workers.",
)
@click.option(
    "--processes",
    "count",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Number of processes, each with the full concurrency. Python uses one core in each.",
)
@click.option("--drain", is_flag=True, help="Exit when nothing is due; fail if no server answers.")
@click.option(
    "--lease",
    type=Number(0.5, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that a frozen worker keeps its jobs before others take them over.",
)
@click.option(
    "--grace",
    type=Number(0, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds that running handlers have to finish after SIGTERM.",
)
@click.option(
    "--release",
    metavar="NAME",
    help="Name this release of the application in `outbox status`. Default: OUTBOX_RELEASE.",
)
@click.option("--stop-pipe", type=int, hidden=True)  # of `outbox dev`
@log_options
@click.option("--no-notify", is_flag=True, help="Only poll; don't LISTEN.")
@click.option(
    "--keep-workflows",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    help="Delete workflows that ended longer ago than this, with their history.",
)
@click.option("--keep-history", type=Number(0, MAX_DAYS), metavar="DAYS", help="Delete history older than this.")
@click.option(
    "--keep-dead",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    default=90.0,
    show_default=True,
    help="Delete the errors of jobs that died longer ago than this. The jobs stay dead.",
)
@click.option(
    "--keep-messages",
    type=Number(0, MAX_DAYS),
    metavar="DAYS",
    help="Delete messages older than this if there is no relay to deliver them.",
)
@click.option(
    "--keep-inbox",
    type=Number(*MEMORY_DAYS),
    metavar="DAYS",
    default=90.0,
    show_default=True,
    help="Forget ids in the inbox older than this. Consumers then refuse messages that old.",
)
@click.pass_obj
def worker(
    found: settings.Settings, app: str | None, stages: tuple[str, ...], concurrency: int | None, count: int,
    drain: bool, lease: float, grace: float, release: str | None, stop_pipe: int | None, log_to: LogOptions,
    no_notify: bool, keep_workflows: float | None, keep_history: float | None, keep_dead: float,
    keep_messages: float | None, keep_inbox: float,
) -> None:  # fmt: skip
    """Run the stages of an application until SIGTERM or Ctrl-C.

    The first signal releases the jobs that have not started and lets running handlers finish within the grace period;
    the second one stops at once. Any number of workers on any number of machines share the work. With --processes, a
    process that ends unasked is started again, and all stop together. It waits for a database that isn't there yet.
    """
    require_database(found)
    logs.set_up(*log_to)
    if count > 1:
        stop_pipe = processes.Supervisor(count).fork()
    with processes.last_word(stop_pipe):
        with processes.ends_with_parent(stop_pipe):
            pipelines = application.load(app or found.app)
        _collect_rarely()
        direct = listening_dsn(found)
        with dsn_of(found) as dsn:
            made = Worker(
                pipelines,
                dsn,
                stages=stages or None,
                concurrency=concurrency,
                listen_dsn=direct,
                lease=lease,
                grace=grace,
                drain=drain,
                notify=not no_notify,
                retention=Retention(keep_workflows, keep_history, keep_dead, keep_messages, keep_inbox),
                on_standstill=ending.leave,
                release=release,
            )
            with reaching(dsn):
                _, left = ending.run(_run(made, stop_pipe, grace))
    if made.interrupted:
        logging.shutdown()
        os._exit(1)
    ending.finish([*made.left, *left])


def _collect_rarely() -> None:
    """Makes the garbage collector pass over what is loaded, and look less often, unless the application has set it.

    Only here: the process of an embedded worker is its application's.
    """
    if gc.isenabled() and gc.get_threshold() == _DEFAULTS:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AFTER)


async def _run(made: Worker, stop_pipe: int | None, grace: float) -> None:
    processes.StopRequests(made.stop, log).listen(stop_pipe, grace)
    try:
        await made.run()
    except asyncio.CancelledError:
        told = "the worker's own tasks were cancelled, as by a handler that cancels all tasks of the event loop"
        raise WorkerBroken(told) from None
    counts = made.counts
    log.info(
        "stopped: %s done, %s to try again, %s dead, %s lost", counts.done, counts.retried, counts.dead, counts.lost
    )
