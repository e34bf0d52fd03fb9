"""What becomes of a delivery: it is handled, tried again, or parked with its reason, and keeps its row in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from kit.broker import queue_depth
from kit.commands import Outbox
from kit.consuming import parked, record, record_in_a_thread, seen
from kit.letters import post, uuid7
from kit.pipelines import value
from outbox import Backoff, Consumer, Delivery, Reject, Retry
from outbox.messages.receive import SQL

Conn = psycopg.Connection[Any]
Run = Callable[..., Consumer]

pytestmark = pytest.mark.usefixtures("effects")


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
    told = conn.execute("SELECT n, attempt FROM outbox.witness ORDER BY n").fetchall()
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
        (("", {"n": 1}), "is not a UUID"),
        ((str(uuid4()), {"n": 1}), "not version 7"),
        ((uuid7(), b"no JSON"), "the body is not JSON"),
        ((uuid7(), b""), "the body is not JSON"),
        ((uuid7(), b'{"n": NaN}'), "NaN is not JSON"),
        ((uuid7(), b"[" * 100_000), "the body is not JSON"),
        ((uuid7(), b"\xff\xfe\x00"), "the body is not JSON"),
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


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_what_is_to_be_called_after_the_commit_is_called_once(conn: Conn, amqp: str, run: Run, colour: str) -> None:
    called: list[Any] = []

    def note(delivery: Delivery) -> None:
        attempt = delivery.attempt
        delivery.on_commit(lambda: called.append((attempt, seen(conn))))
        if attempt == 1:
            raise ValueError("again")

    async def handler(delivery: Delivery) -> None:
        await record(delivery)
        note(delivery)

    def in_a_thread(delivery: Delivery) -> None:
        record_in_a_thread(delivery)
        note(delivery)

    post(amqp, (uuid7(), {"n": 1}))
    run(handler if colour == "async" else in_a_thread, lambda: called)
    assert called == [(2, [1])]
