"""Runs a worker, a consumer or a relay in a program that logs at debug, and lets it end with its traceback.

`python -m apps.debugging KIND` reads the DSN and the URL of the broker from standard input, a line each.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

from apps.cli import posts
from outbox import Consumer, Worker
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay


async def handle(delivery: Any) -> None: ...


class EndsWhatIsTriedAgain(logging.Handler):
    """Cancels a relay, which waits for a database that refuses it: the first time is enough."""

    def __init__(self, running: asyncio.Task[Any]) -> None:
        super().__init__()
        self.running = running

    def emit(self, record: logging.LogRecord) -> None:
        if "trying again" in record.getMessage():
            self.running.cancel()


async def main(kind: str, dsn: str, amqp: str) -> None:
    running = asyncio.current_task()
    assert running is not None
    logging.getLogger("outbox.relay").addHandler(EndsWhatIsTriedAgain(running))
    made: dict[str, Callable[[], Any]] = {
        "worker": lambda: Worker(posts, dsn, drain=True),
        "consumer": lambda: Consumer("q", handle, dsn=dsn, amqp_url=amqp),
        "relay": lambda: Relay(dsn, Handoff(dsn, "posts")),
    }
    await made[kind]().run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG)
    asyncio.run(main(sys.argv[1], *sys.stdin.read().splitlines()))
