"""Relays' logs for the tests of the log and its ring; consumers for those of what they receive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kit.log import Reader
from kit.servers import wait_for
from outbox import Backoff, Consumer, Delivery

Conn = psycopg.Connection[Any]
Handler = Callable[[Delivery], Any]
Run = Callable[..., Consumer]
QUICK = Backoff(first=0.01, factor=1, attempts=3)
Another = Callable[..., Reader]


@pytest.fixture
def another(dsn: str) -> Iterator[Callable[..., Reader]]:
    """Make further relays' logs; they are closed at the test's end."""
    made: list[Reader] = []

    def another(name: str = "default") -> Reader:
        made.append(Reader(dsn, name))
        return made[-1]

    yield another
    for reader in made:
        reader.close()


@pytest.fixture
def reader(another: Another) -> Reader:
    made = another()
    assert made.begin() is None
    return made


@pytest.fixture
def effects(request: pytest.FixtureRequest) -> None:
    """Make the table in which handlers leave what they did, where a test has a database."""
    if "conn" in request.fixturenames:
        request.getfixturevalue("conn").execute("CREATE TABLE outbox.witness (id serial, n int, attempt int)")


@pytest.fixture
def run(dsn: str, amqp: str) -> Run:
    """Run a consumer of the queue q in this process until a condition holds; return it."""

    def run(handler: Handler, until: Callable[[], Any], **options: Any) -> Consumer:
        consumer = Consumer("q", handler, **{"dsn": dsn, "amqp_url": amqp, "retry": QUICK, **options})

        async def main() -> None:
            running = asyncio.create_task(consumer.run())
            waiting = asyncio.create_task(asyncio.to_thread(wait_for, until))
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            consumer.stop()
            await running
            await waiting

        asyncio.run(main())
        return consumer

    return run
