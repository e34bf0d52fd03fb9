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
from broker import channel, queue_depth
from commands import Outbox
from conftest import OWNER
from letters import post, uuid7
from pipelines import value
from psycopg.rows import dict_row
from servers import wait_for

from outbox import (
    Backoff,
    Consumer,
    DefinitionError,
    Delivery,
    OutboxError,
    Reject,
    Retry,
    SchemaError,
    SettingsError,
    consume,
)
from outbox.messages.receive import SQL

Conn = psycopg.Connection[Any]
Handler = Callable[[Delivery], Any]
Run = Callable[..., Consumer]

QUICK = Backoff(first=0.01, factor=1, attempts=3)
INSERT = "INSERT INTO outbox.effects (n, attempt) VALUES (%s, %s)"


@pytest.fixture(autouse=True)
def effects(request: pytest.FixtureRequest) -> None:
    if "conn" in request.fixturenames:
        request.getfixturevalue("conn").execute("CREATE TABLE outbox.effects (id serial, n int, attempt int)")


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


async def record(delivery: Delivery) -> None:
    await delivery.connection.execute(INSERT, (delivery.payload["n"], delivery.attempt))


def record_in_a_thread(delivery: Delivery) -> None:
    delivery.connection.execute(INSERT, (delivery.payload["n"], delivery.attempt))


def seen(conn: Conn) -> list[int]:
    return [row[0] for row in conn.execute("SELECT n FROM outbox.effects ORDER BY id")]


def parked(conn: Conn) -> list[str]:
    return [row[0] for row in conn.execute("SELECT reason FROM outbox.parked_deliveries ORDER BY id")]


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


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


ODD = [ValueError("one"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), Unprintable(), StopIteration(),
       GeneratorExit(), Retry(), Retry(after=0.01)]  # fmt: skip


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_whatever_a_handler_raises_the_message_is_tried_again(
    conn: Conn, amqp: str, run: Run, error: BaseException, colour: str
) -> None:
    async def fails(delivery: Delivery) -> None:
        await record(delivery)
        if delivery.attempt == 1 and delivery.payload["n"] == 1:
            raise error

    def fails_in_a_thread(delivery: Delivery) -> None:
        record_in_a_thread(delivery)
        if delivery.attempt == 1 and delivery.payload["n"] == 1:
            raise error

    post(amqp, (uuid7(), {"n": 1}), (uuid7(), {"n": 2}))
    run(fails if colour == "async" else fails_in_a_thread, lambda: len(seen(conn)) == 2)
    told = conn.execute("SELECT n, attempt FROM outbox.effects ORDER BY n").fetchall()
    assert told == [(1, 2), (2, 1)], "what the failed attempt wrote was rolled back"
    assert value(conn, "SELECT count(*) FROM outbox.delivery_attempts") == 0, "and its trouble is forgotten"


def test_after_its_last_attempt_a_message_is_parked_and_the_next_one_goes_on(conn: Conn, amqp: str, run: Run) -> None:
    attempts = []

    async def fails(delivery: Delivery) -> None:
        if delivery.payload["n"] == 1:
            attempts.append(delivery.attempt)
            raise ValueError("no such customer\0")
        await record(delivery)

    post(amqp, (uuid7(), {"n": 1}), (uuid7(), {"n": 2}))
    run(fails, lambda: seen(conn))
    assert (seen(conn), attempts) == ([2], [1, 2, 3])
    (reason,) = parked(conn)
    assert reason.startswith("ValueError: no such customer")
    assert queue_depth(amqp, "q") == 0


def test_a_rejected_message_is_parked_at_once(conn: Conn, amqp: str, run: Run) -> None:
    def reject(delivery: Delivery) -> None:
        record_in_a_thread(delivery)
        raise Reject("no customer of ours")

    post(amqp, (uuid7(), {"n": 1}))
    run(reject, lambda: parked(conn))
    assert (parked(conn), seen(conn)) == (["no customer of ours"], [])


def test_a_handler_that_takes_too_long_has_failed(conn: Conn, amqp: str, run: Run) -> None:
    async def sleeps(delivery: Delivery) -> None:
        await record(delivery)
        await asyncio.sleep(60)

    post(amqp, (uuid7(), {"n": 1}))
    run(sleeps, lambda: parked(conn), timeout=0.05, retry=Backoff(attempts=1))
    assert "not done within 0.05 s" in parked(conn)[0]
    assert seen(conn) == []


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_handler_that_ends_its_transaction_is_told_so(conn: Conn, amqp: str, run: Run, end: str) -> None:
    async def ends(delivery: Delivery) -> None:
        await delivery.connection.execute(end)

    post(amqp, (uuid7(), {"n": 1}))
    run(ends, lambda: parked(conn), retry=Backoff(attempts=1))
    assert "ended the transaction" in parked(conn)[0]


def test_a_handler_that_leaves_its_transaction_aborted_has_failed(conn: Conn, amqp: str, run: Run) -> None:
    async def aborts(delivery: Delivery) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await delivery.connection.execute("SELECT 1/0")

    post(amqp, (uuid7(), {"n": 1}))
    run(aborts, lambda: parked(conn), retry=Backoff(attempts=1))
    assert "InFailedSqlTransaction" in parked(conn)[0]


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


@pytest.mark.parametrize("after", ["soon", float("nan"), -1, 1e300, True])
def test_a_wish_to_wait_that_is_no_time_is_the_stages_own(conn: Conn, amqp: str, run: Run, after: Any) -> None:
    async def wishes(delivery: Delivery) -> None:
        await record(delivery)
        if delivery.attempt == 1:
            error = Retry(after=1)
            error.after = after
            raise error

    post(amqp, (uuid7(), {"n": 1}))
    run(wishes, lambda: seen(conn))
    assert seen(conn) == [1]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (("", {"n": 1}), "no UUID"),
        ((str(uuid4()), {"n": 1}), "no version 7"),
        ((uuid7(), b"no JSON"), "the body is no JSON"),
        ((uuid7(), b""), "the body is no JSON"),
        ((uuid7(), b'{"n": NaN}'), "NaN is not JSON"),
        ((uuid7(), b"[" * 100_000), "the body is no JSON"),
        ((uuid7(), b"\xff\xfe\x00"), "the body is no JSON"),
        ((uuid7(-400), {"n": 1}), "more than a day ahead"),
    ],
)
def test_what_cannot_be_read_is_parked_once_with_its_reason(
    conn: Conn, amqp: str, run: Run, message: tuple[str, Any], reason: str
) -> None:
    post(amqp, message, message, headers={"odd": {"deep": [b"\x00\xff", None, True]}})
    post(amqp, (uuid7(), {"n": 2}))
    run(record, lambda: seen(conn))
    assert seen(conn) == [2], "the next one is handled"
    assert len(parked(conn)) == 1
    assert reason in parked(conn)[0], parked(conn)
    assert value(conn, "SELECT deliveries FROM outbox.parked_deliveries") == 2


# A person wants it tried again.


def test_what_cannot_be_stored_as_it_came_is_tried_again_once_and_keeps_its_row(
    conn: Conn, amqp: str, run: Run, outbox: Outbox
) -> None:
    """A NUL in the topic, a long header: stored clean, so that the content that comes back is another."""
    post(amqp, ("", {"n": 1}), topic="t.\0", headers={"long": "x" * 9_000})
    run(record, lambda: parked(conn))
    before = conn.execute("SELECT id, parked_at FROM outbox.parked_deliveries").fetchone()
    assert before is not None
    outbox("parked", "--retry", str(before[0]))
    settled = "SELECT NOT retry AND parked_at > %s FROM outbox.parked_deliveries"
    run(record, lambda: value(conn, settled, before[1]))
    assert value(conn, "SELECT array_agg(id) FROM outbox.parked_deliveries") == [before[0]]


def test_what_is_handled_after_all_is_parked_no_more(conn: Conn, amqp: str, run: Run, outbox: Outbox) -> None:
    def fails(_: Delivery) -> None:
        raise ValueError("not yet")

    post(amqp, *((uuid7(), {"n": n}) for n in range(3)), key="k")
    run(fails, lambda: len(parked(conn)) == 3, retry=Backoff(attempts=1))
    outbox("parked", "--consumer", "q", "--retry")
    run(record, lambda: not parked(conn), retry=Backoff(attempts=1))
    assert seen(conn) == [0, 1, 2]
    assert value(conn, "SELECT count(*) FROM outbox.delivery_attempts") == 0


def test_a_wish_to_try_again_outlives_another_delivery(conn: Conn) -> None:
    values = {"consumer": "q", "message_id": None, "digest": b"d", "parked": None, "queue": "q", "stated_id": None,
              "topic": "t", "body": b"", "headers": "{}", "reason": "one"}  # fmt: skip
    conn.execute(SQL["delivery_park"], values)
    conn.execute("UPDATE outbox.parked_deliveries SET retry = true")
    conn.execute(SQL["delivery_park"], {**values, "reason": "two"})
    told = conn.execute("SELECT retry, reason, deliveries FROM outbox.parked_deliveries").fetchall()
    assert told == [(True, "two", 2)]


# Order and concurrency.


def test_messages_of_a_key_are_handled_one_after_the_other(conn: Conn, amqp: str, run: Run) -> None:
    at_once: dict[str, int] = {}
    most = 0

    async def handler(delivery: Delivery) -> None:
        nonlocal most
        key = str(delivery.key)
        at_once[key] = at_once.get(key, 0) + 1
        assert at_once[key] == 1
        most = max(most, sum(at_once.values()))
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


def test_queue_and_exchange_are_made_bound_and_durable(conn: Conn, amqp: str, run: Run) -> None:
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
        opened.queue_declare("q", durable=True)


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
            GRANT INSERT ON outbox.effects TO {role};
            GRANT USAGE ON SEQUENCE outbox.effects_id_seq TO {role};
        """.encode()
        )
        yield dsn.replace(f"{OWNER}@", f"{role}@")
        admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_role_that_may_not_forget_consumes_all_the_same(
    conn: Conn, amqp: str, clerk: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    post(amqp, (uuid7(), {"n": 1}))
    run(record, lambda: seen(conn) and "can't keep house: permission denied" in caplog.text, dsn=clerk)
    assert [line for line in caplog.text.splitlines() if "can't keep house" in line][1:] == []


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
    consumer._pid = os.getpid() + 1
    with pytest.raises(OutboxError, match="before a fork"):
        asyncio.run(consumer.run())


def test_a_broker_that_is_not_there_is_waited_for_without_a_word_of_the_password(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        caplog.set_level(logging.DEBUG)
        running = asyncio.create_task(
            consume("q", record, dsn=dsn, amqp_url="amqp://guest:canary-7@127.0.0.1:1/", grace=0)
        )
        deadline = time.monotonic() + 20
        while "trying again" not in caplog.text and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert not running.done()
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(main())
    assert "trying again" in caplog.text
    assert "canary" not in caplog.text
