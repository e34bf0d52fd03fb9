"""F57: nodes of a RabbitMQ cluster are killed and frozen under a relay and a consumer. All that was written has one effect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from kit.broker import Broker
from kit.broker_cluster import BrokerCluster
from kit.consuming import record, seen
from kit.deliveries import relayed, write
from kit.pipelines import value
from kit.servers import wait_for
from outbox import Consumer
from outbox.messages.rabbitmq import batch, publisher, silence
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
During = Callable[..., None]
# A leader without its majority confirms nothing; where there is no leader, RabbitMQ refuses.
HELD_UP = """
    SELECT EXISTS (SELECT FROM outbox.parked_messages WHERE waits_until > now())
        OR EXISTS (SELECT FROM outbox.relays WHERE trouble LIKE '%no confirm for%')
"""


@pytest.fixture
def cluster() -> Iterator[BrokerCluster]:
    cluster = BrokerCluster()
    try:
        yield cluster.start()
    finally:
        cluster.remove()


class Writer:
    """Writes messages, and knows how many: their numbers are 0, 1, 2, …"""

    def __init__(self, conn: Conn) -> None:
        self.conn, self.written = conn, 0

    def more(self, count: int = 50) -> None:
        write(self.conn, count, first=self.written)
        self.written += count

    def arrives(self, count: int = 50) -> None:
        """Write more, and wait until all that was written has had its effect."""
        self.more(count)
        wait_for(lambda: value(self.conn, "SELECT count(DISTINCT n) FROM outbox.witness") == self.written)


@pytest.fixture
def during(dsn: str, conn: Conn, cluster: BrokerCluster) -> During:
    """Run a consumer and a relay, both at first at the node `at`, while a step runs in a thread; keep the books.

    The consumer makes the queue, so the node also leads it.
    """
    conn.execute("CREATE TABLE outbox.witness (id serial, n int, attempt int)")

    def during(step: Callable[[Writer, Callable[[], Broker]], Any], at: Broker) -> None:
        urls = cluster.urls(cluster.new_vhost(), first=at)
        writer = Writer(conn)
        consumer = Consumer("q", record, dsn=dsn, amqp_url=urls, exchange="x", topics=["#"], concurrency=4)
        sends = Publisher(urls, source="/test", exchange="x", strict=True)
        relay = Relay(dsn, sends, strict=True)

        def relays_to() -> Broker:
            return next(node for node in cluster.nodes if sends._brokers.named("").startswith(f"127.0.0.1:{node.port}"))

        async def main() -> None:
            running = [asyncio.create_task(consumer.run())]
            await asyncio.to_thread(wait_for, lambda: consumer._subscription._tag, what="the consumer has its queue")
            running.append(asyncio.create_task(relay.run()))
            stepping = asyncio.create_task(asyncio.to_thread(step, writer, relays_to))
            await asyncio.wait({*running, stepping}, return_when="FIRST_COMPLETED")
            relay.stop()
            consumer.stop()
            await asyncio.gather(*running)
            await stepping

        asyncio.run(main())
        assert relayed(conn)
        assert sorted(seen(conn)) == list(range(writer.written)), "each has one effect"
        assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0

    return during


def test_nodes_are_killed_and_frozen_and_each_message_has_one_effect(
    cluster: BrokerCluster, during: During, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story, as a cluster takes long to start: a node is killed, then the majority, then one is frozen."""
    monkeypatch.setattr(silence, "SAID_AFTER", 1.0)
    monkeypatch.setattr(publisher, "_LEAVE_EVERY", 1.0)
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.01, max=0.05))
    monkeypatch.setattr(silence, "LEFT_AFTER", 5.0)
    _, first, second = cluster.nodes

    def step(writer: Writer, relays_to: Callable[[], Broker]) -> None:
        writer.arrives()
        first.crash()
        writer.arrives()
        assert relays_to() is not first
        second.crash()
        writer.more()
        wait_for(lambda: value(conn, HELD_UP), what="the relay says so, or sets them aside for as long")
        cluster.recover()
        writer.arrives()
        frozen = relays_to()
        frozen.freeze()
        writer.arrives()
        assert relays_to() is not frozen
        frozen.thaw()
        writer.arrives()

    during(step, at=first)
