"""Defines the command `outbox demo` and its options."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from outbox.errors import SettingsError
from outbox.settings import Settings

if TYPE_CHECKING:
    from .sources import Source


@click.command()
@click.option("--posts", type=click.Path(path_type=Path), help="Read posts from this file: JSON lines, CSV or TSV.")
@click.option("--feed", metavar="URL", help="Read posts from an RSS or Atom feed, by its URL or file name.")
@click.option("--column", default="content", show_default=True, help="The column of --posts that has the text.")
@click.option("--id-column", help="The column of --posts that has an id. Default: `id`, else the line's number.")
@click.option("--limit", type=click.IntRange(min=1), help="Read at most this many posts.")
@click.option("--workers", type=click.IntRange(1, 32), default=2, show_default=True, help="Number of worker processes.")
@click.option(
    "--relay", is_flag=True, help="Also send posts.enriched to RabbitMQ (OUTBOX_AMQP_URL), and kill the consumer once."
)
@click.option("--ui", is_flag=True, help="Show the web page, and leave the reviews to you for a minute.")
@click.pass_obj
def demo(
    found: Settings,
    posts: Path | None,
    feed: str | None,
    column: str,
    id_column: str | None,
    limit: int | None,
    workers: int,
    relay: bool,
    ui: bool,
) -> None:
    """Run a social media agent with faults, and check the results.

    Its service fails, and a worker is killed.
    """
    from outbox.commands import page
    from outbox.commands.connection import dsn_of

    try:
        from .actors import REVIEWER
        from .demo import run_demo
    except ModuleNotFoundError as error:
        raise click.ClickException(f'{error}. Run: pip install "outbox-engine[demo]"') from error
    if relay and not found.amqp_url:
        raise SettingsError("--relay needs OUTBOX_AMQP_URL; in a clone, make demo RELAY=1 starts a RabbitMQ of its own")
    source = choose(posts, feed, column, id_column, limit)
    # A signal must end the demo's processes first, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, leave)
    if not found.dsn:  # not DATABASE_URL: that is an application's
        found = replace(found, bundled=True)
    with dsn_of(found) as dsn, ExitStack() as stack:
        url = stack.enter_context(page.shown(dsn, REVIEWER, ("look", "decide"))) if ui else None
        code = run_demo(dsn, source, workers, amqp_url=found.amqp_url if relay else None, page=url)
    sys.exit(code)


def choose(posts: Path | None, feed: str | None, column: str, id_column: str | None, limit: int | None) -> Source:
    """Returns the source of posts that the options name."""
    from .sources import FeedSource, FileSource, bundled

    if posts and feed:
        raise click.UsageError("--posts and --feed exclude each other")
    if feed:
        return FeedSource(feed, limit)
    if posts:
        return FileSource(posts, column, id_column, limit)
    return bundled(limit)


def leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
