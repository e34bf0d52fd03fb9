"""Consumers and relays in an application's block, and what runs around a consumer's handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from kit.consuming import parked
from kit.letters import post, uuid7
from kit.servers import DEADLINE, wait_for
from outbox import Backoff, Consumer, DefinitionError, Delivery, FailedAttempt, SchemaError
from outbox.messages.relay import Relay
from outbox.messages.target import Outgoing, Parked, Target

Conn = psycopg.Connection[Any]


def run(main: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(main(), DEADLINE))


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "plain"])
def test_a_consumer_has_a_block_and_what_is_around_its_handler(conn: Conn, dsn: str, amqp: str, is_async: bool) -> None:
    told: list[Any] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, int]]:
        told.append("opened")
        yield {"n": 1}
        told.append("closed")

    @contextmanager
    def around(delivery: Delivery) -> Iterator[None]:
        told.append(f"around {delivery.payload}")
        yield

    def on_error(error: BaseException, failed: FailedAttempt) -> None:
        told.append((str(error), failed))

    def plain(delivery: Delivery) -> None:
        told.append(f"handles {delivery.payload} with {delivery.resources['n']}")
        if delivery.payload == "bad":
            raise ValueError("bad")

    async def handler(delivery: Delivery) -> None:
        plain(delivery)

    consumer = Consumer(
        "q", handler if is_async else plain, dsn=dsn, amqp_url=amqp, exchange="shop", topics=["#"],
        retry=Backoff(first=0, attempts=2), around=around, lifespan=lifespan, on_error=on_error,
    )  # fmt: skip
    message_id = uuid7()

    async def main() -> None:
        assert consumer.health().reason == "the consumer is not running"
        async with consumer:
            assert consumer.health().ok, consumer.health()
            if not told.count("closed"):
                post(amqp, (uuid7(), "good"), (message_id, "bad"))
                await until(lambda: parked(conn))
        assert not consumer.health().running

    run(main)
    assert (told[0], told[-1]) == ("opened", "closed")
    assert [line for line in told if "good" in line] == ["around good", "handles good with 1"]
    failures = [line for line in told if isinstance(line, tuple)]
    assert failures == [
        ("bad", FailedAttempt(None, "q", str(message_id), 1, 0.0)),
        ("bad", FailedAttempt(None, "q", str(message_id), 2, None)),
    ]
    run(main)  # once more, in another loop
    assert told[-2:] == ["opened", "closed"]


def test_what_keeps_a_consumer_from_starting_is_raised(empty_dsn: str, amqp: str) -> None:
    async def handle(delivery: Delivery) -> None: ...

    async def main() -> None:
        async with Consumer("q", handle, dsn=empty_dsn, amqp_url=amqp):
            raise AssertionError("the block has begun")

    with pytest.raises(SchemaError):
        run(main)
    with pytest.raises(DefinitionError, match="consumer: lifespan=5 is not a function"):
        Consumer("q", handle, dsn=empty_dsn, amqp_url=amqp, lifespan=5)  # type: ignore[arg-type]


class Collects(Target):
    def __init__(self) -> None:
        super().__init__("a list")
        self.topics: list[str] = []

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        self.topics += [message.topic for message in messages]
        return {}

    async def close(self) -> None: ...


def test_a_relay_has_a_block_also_while_another_process_relays(conn: Conn, dsn: str) -> None:
    target = Collects()

    async def main() -> None:
        first, second = Relay(dsn, target), Relay(dsn, Collects())
        async with first:
            assert first.health().ok, first.health()
            async with second:  # stands by
                assert second.health().ok, second.health()
                conn.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('t', '{}')")
                await until(lambda: target.topics)
        assert first.health().reason == "the relay is not running"

    run(main)
    with Relay(dsn, target) as relay:
        conn.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('u', '{}')")
        wait_for(lambda: target.topics == ["t", "u"])
        assert relay.health().heartbeat is not None


def test_a_relay_may_be_used_again(conn: Conn, dsn: str) -> None:
    target = Collects()
    relay = Relay(dsn, target)

    async def main() -> None:
        async with relay:
            conn.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('t', '{}')")
            await until(lambda: len(target.topics) == times)

    for times in (1, 2):  # noqa: B007 - main has it
        run(main)


def test_what_keeps_a_relay_from_starting_is_raised(empty_dsn: str) -> None:
    async def main() -> None:
        async with Relay(empty_dsn, Collects()):
            raise AssertionError("the block has begun")

    with pytest.raises(SchemaError):
        run(main)
