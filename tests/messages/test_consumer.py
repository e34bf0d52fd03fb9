"""The consumer for Python services: what a handler is given, what becomes of what it does, and what is parked."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pika
import psycopg
import pytest
from psycopg.rows import dict_row

from kit.broker import Broker, channel, queue_depth
from kit.consuming import parked, record, record_in_a_thread, seen
from kit.databases import OWNER
from kit.letters import post, uuid7
from kit.pipelines import value
from kit.servers import DEADLINE
from outbox import (
    Backoff,
    Consumer,
    DefinitionError,
    Delivery,
    OutboxError,
    SchemaError,
    SettingsError,
    consume,
)
from outbox.messages.rabbitmq.subscription import QUEUE

Conn = psycopg.Connection[Any]
Handler = Callable[[Delivery], Any]
Run = Callable[..., Consumer]


pytestmark = pytest.mark.usefixtures("effects")


@pytest.mark.parametrize("handler", [record, record_in_a_thread])
def test_each_message_has_one_effect_however_often_it_comes(conn: Conn, amqp: str, run: Run, handler: Handler) -> None:
    messages = [(uuid7(), {"n": n}) for n in range(10)]
    post(amqp, *messages, *messages, (uuid7(), {"n": 10}))
    run(handler, lambda: 10 in seen(conn))
    assert seen(conn) == list(range(11))
    assert queue_depth(amqp, "q") == 0, "all are acknowledged"
    assert value(conn, "SELECT count(*) FROM outbox.inbox WHERE consumer = 'q'") == 11


def test_a_handler_is_given_the_message(conn: Conn, amqp: str, run: Run) -> None:
    given: list[Delivery] = []
    message_id = uuid7()
    post(amqp, (message_id, {"n": [1, None, "ü"]}), topic="posts.done", key="p1", headers={"trace": "abc"})
    run(given.append, lambda: given)
    (delivery,) = given
    assert (delivery.message_id, delivery.topic, delivery.key) == (UUID(message_id), "posts.done", "p1")
    assert (delivery.payload, delivery.attempt) == ({"n": [1, None, "ü"]}, 1)
    assert delivery.headers["trace"] == "abc"
    assert "connection" not in repr(delivery)


def test_consumers_of_other_names_each_get_every_message(conn: Conn, amqp: str, run: Run) -> None:
    message = uuid7(), {"n": 1}
    post(amqp, message)
    run(record, lambda: seen(conn), consumer="crm")
    post(amqp, message)
    run(record, lambda: len(seen(conn)) == 2, consumer="billing")
    assert value(conn, "SELECT array_agg(consumer ORDER BY consumer)::text FROM outbox.inbox") == "{billing,crm}"


@pytest.mark.parametrize("handler", [record, record_in_a_thread])
def test_a_handler_may_have_its_rows_as_it_likes(conn: Conn, amqp: str, run: Run, handler: Handler) -> None:
    """Though it fails after it has said so, which is what the engine's own look at the attempts then meets."""

    def says_so(delivery: Delivery) -> None:
        delivery.connection.row_factory = dict_row
        if delivery.payload["n"] == 1 and delivery.attempt == 1:
            raise ValueError("once")

    def in_a_thread(delivery: Delivery) -> None:
        record_in_a_thread(delivery)
        says_so(delivery)

    async def in_the_loop(delivery: Delivery) -> None:
        await record(delivery)
        says_so(delivery)

    post(amqp, (uuid7(), {"n": 1}), (uuid7(), {"n": 2}))
    run(in_the_loop if handler is record else in_a_thread, lambda: len(seen(conn)) == 2)
    assert sorted(seen(conn)) == [1, 2]
    assert parked(conn) == []


# Order and concurrency.


def test_messages_of_a_key_are_handled_one_after_the_other(conn: Conn, amqp: str, run: Run) -> None:
    at_once: dict[str, int] = {}
    most = 0
    side_by_side = asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        nonlocal most
        key = str(delivery.key)
        at_once[key] = at_once.get(key, 0) + 1
        assert at_once[key] == 1
        most = max(most, sum(at_once.values()))
        if most > 1:
            side_by_side.set()
        await side_by_side.wait()  # the first one, for another
        await asyncio.sleep(random.random() * 0.01)
        if random.random() < 0.1:
            at_once[key] -= 1
            raise ValueError
        await record(delivery)
        at_once[key] -= 1

    for n in range(0, 120, 8):
        for key in range(8):
            post(amqp, (uuid7(), {"n": n + key}), key=f"k{key}")
    run(handler, lambda: len(seen(conn)) == 120, concurrency=8, retry=Backoff(first=0.01, factor=1, attempts=50))
    assert parked(conn) == []
    for key in range(8):
        mine = [n for n in seen(conn) if n % 8 == key]
        assert mine == sorted(mine)
    assert most > 1, "different keys are handled side by side"


# What it needs.


def test_what_waits_is_not_begun_after_a_stop_though_the_broker_is_silent(dsn: str, broker: Broker, amqp: str) -> None:
    """Until the broker has answered that it delivers no more, the handler that runs may end."""
    post(amqp, *((uuid7(), {"n": n}) for n in range(5)))
    begun: list[int] = []

    async def main() -> None:
        stopped = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            begun.append(delivery.payload["n"])
            if not stopped.is_set():
                while consumer._lanes[0].load < 5:
                    await asyncio.sleep(0.01)
                broker.freeze()
                consumer.stop()
                stopped.set()

        consumer = Consumer("q", handle, dsn=dsn, amqp_url=amqp, exchange="x", topics=["t.#"])
        await asyncio.wait_for(consumer.run(), DEADLINE)

    asyncio.run(main())
    assert len(begun) == 1


def queues(url: str, broker: Broker, column: str) -> str:
    """Return what rabbitmqctl says of the queues of a virtual host."""
    return broker.ctl("list_queues", "--vhost", url.rpartition("/")[2], "--no-table-headers", column).strip()


def test_a_queue_is_made_as_a_quorum_queue_and_bound(conn: Conn, amqp: str, broker: Broker, run: Run) -> None:
    def there() -> bool:
        with channel(amqp) as opened:
            opened.basic_publish("shop", "posts.done", b"{}")
            return queue_depth(amqp, "q") >= 0

    def bound() -> bool:
        try:
            return there()
        except Exception:
            return False

    run(record, bound, exchange="shop", topics=["posts.*", "orders.#"])
    with channel(amqp) as opened:
        opened.exchange_declare("shop", "topic", durable=True)
        opened.queue_declare("q", durable=True, arguments=QUEUE)
    assert queues(amqp, broker, "type") == "quorum"


def test_a_message_that_was_given_back_many_times_is_delivered_still(
    conn: Conn, amqp: str, broker: Broker, run: Run
) -> None:
    """A lost connection gives back all that was not acknowledged, and each time counts for a quorum queue."""
    run(record, lambda: queues(amqp, broker, "type"), exchange="x", topics=["#"])
    with channel(amqp) as opened:
        opened.confirm_delivery()
        for n in range(3):
            properties = pika.BasicProperties(delivery_mode=2, headers={"cloudEvents_id": uuid7()})
            opened.basic_publish("x", "t", b'{"n": %d}' % n, properties)
    for _ in range(25):
        with channel(amqp) as opened:
            while opened.basic_get("q")[0] is not None:
                pass
    run(record, lambda: len(seen(conn)) == 3)
    assert seen(conn) == [0, 1, 2], "in their order"


@pytest.mark.parametrize(
    "made",
    [
        {"durable": True},
        {"durable": True, "arguments": {"x-queue-type": "quorum"}},
        {"durable": True, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}},
        {"auto_delete": False},
    ],
    ids=["classic", "quorum", "limited", "transient"],
)
def test_a_queue_of_another_type_is_taken_as_it_is(conn: Conn, amqp: str, run: Run, made: dict[str, Any]) -> None:
    with channel(amqp) as opened:
        opened.queue_declare("q", **made)
        opened.basic_publish("", "q", b'{"n": 1}', pika.BasicProperties(headers={"cloudEvents_id": uuid7()}))
    run(record, lambda: seen(conn), exchange="shop", topics=["t"])


def test_queue_of_other_options_is_taken_as_it_is(conn: Conn, amqp: str, run: Run) -> None:
    with channel(amqp) as opened:
        opened.queue_declare("q", durable=True, arguments={"x-max-length": 100})
        opened.exchange_declare("shop", "topic", durable=False)
    with channel(amqp) as opened:
        opened.queue_bind("q", "shop", "never")
    with channel(amqp) as opened:
        properties = pika.BasicProperties(headers={"cloudEvents_id": uuid7()})
        opened.basic_publish("", "q", b'{"n": 1}', properties)
    run(record, lambda: seen(conn), exchange="shop", topics=["t"])


@pytest.fixture
def clerk(dsn: str, admin_dsn: str) -> Iterator[str]:
    """The test's database as a role that may consume, and not forget."""
    role = f"clerk_{uuid4().hex[:8]}"
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(
            f"""
            CREATE ROLE {role} LOGIN;
            GRANT USAGE ON SCHEMA outbox TO {role};
            GRANT SELECT ON outbox.schema_migrations TO {role};
            GRANT INSERT ON outbox.inbox TO {role};
            GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.parked_deliveries, outbox.delivery_attempts TO {role};
            GRANT INSERT ON outbox.witness TO {role};
            GRANT USAGE ON SEQUENCE outbox.witness_id_seq TO {role};
        """.encode()
        )
        yield dsn.replace(f"{OWNER}@", f"{role}@")
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_role_that_may_not_forget_consumes_all_the_same(
    conn: Conn, amqp: str, clerk: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    post(amqp, (uuid7(), {"n": 1}))
    run(record, lambda: seen(conn) and "housekeeping failed: permission denied" in caplog.text, dsn=clerk)
    assert [line for line in caplog.text.splitlines() if "housekeeping failed" in line][1:] == []


def test_a_database_without_the_schema_is_refused_at_once(empty_dsn: str, amqp: str) -> None:
    consumer = Consumer("q", record, dsn=empty_dsn, amqp_url=amqp)
    with pytest.raises(SchemaError, match="outbox migrate"):
        asyncio.run(consumer.run())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dsn": None}, SettingsError, "OUTBOX_DSN"),
        ({"amqp_url": None}, SettingsError, "OUTBOX_AMQP_URL"),
        ({"amqp_url": "http://u:canary@h/"}, SettingsError, "AMQP URL"),
        ({"topics": ["t"]}, DefinitionError, "exchange"),
        ({"concurrency": 0}, DefinitionError, "concurrency"),
        ({"timeout": -1}, DefinitionError, "timeout"),
        ({"grace": float("nan")}, DefinitionError, "grace"),
        ({"keep_inbox": 1_000}, DefinitionError, "keep_inbox"),
        ({"consumer": ""}, OutboxError, "consumer"),
    ],
)
def test_what_cannot_work_is_refused_as_it_is_made(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    for name in ("OUTBOX_DSN", "OUTBOX_AMQP_URL"):
        monkeypatch.delenv(name, raising=False)
    given = {"dsn": "postgresql://localhost/x", "amqp_url": "amqp://localhost/", **options}
    with pytest.raises(error, match=words) as caught:
        Consumer("q", record, **given)
    assert "canary" not in str(caught.value)


def test_without_pika_it_says_what_to_install() -> None:
    program = """
import sys
sys.modules["pika"] = None
from outbox import Consumer
Consumer("q", print, dsn="postgresql://localhost/x", amqp_url="amqp://localhost/")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert 'pip install "outbox-engine[rabbitmq]"' in done.stderr.splitlines()[-1]


def test_a_consumer_that_was_made_before_a_fork_is_refused(dsn: str, amqp: str) -> None:
    consumer = Consumer("q", record, dsn=dsn, amqp_url=amqp)
    consumer._service._pid = os.getpid() + 1
    with pytest.raises(OutboxError, match="before a fork"):
        asyncio.run(consumer.run())


def test_a_broker_that_is_not_there_is_passed_over_for_the_next_one(
    conn: Conn, amqp: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    post(amqp, (uuid7(), {"n": 1}))
    run(record, lambda: seen(conn), amqp_url=f"amqp://guest:canary-7@127.0.0.1:1/, {amqp}")
    assert "trying again" not in caplog.text
    assert "canary" not in caplog.text
    assert f"connected to 127.0.0.1:{amqp.split(':')[3].partition('/')[0]}" in caplog.text


def test_urls_may_be_given_one_by_one(conn: Conn, amqp: str, run: Run) -> None:
    post(amqp, (uuid7(), {"n": 1}))
    run(record, lambda: seen(conn), amqp_url=["amqp://127.0.0.1:1/", amqp])


def test_a_broker_that_is_not_there_is_waited_for_without_a_word_of_the_password(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        caplog.set_level(logging.DEBUG)
        running = asyncio.create_task(
            consume("q", record, dsn=dsn, amqp_url="amqp://guest:canary-7@127.0.0.1:1/", grace=0)
        )
        deadline = time.monotonic() + DEADLINE
        while "trying again" not in caplog.text and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert not running.done()
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(main())
    assert "trying again" in caplog.text
    assert "canary" not in caplog.text
