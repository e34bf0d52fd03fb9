"""What no queue takes waits beside the log, holds up nothing but its own key, and is parked for a person at last."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from kit.broker import channel
from kit.commands import Outbox
from kit.deliveries import bind, relayed, take
from kit.pipelines import value
from kit.scripted_broker import Message, ScriptedBroker
from kit.servers import Process, wait_for
from outbox.messages import log, parking
from outbox.messages.log import Log
from outbox.messages.rabbitmq import batch, routes
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
During = Callable[..., Relay]
PARKED = "SELECT count(*) FROM outbox.parked_messages WHERE waits_until IS NULL"
WAITING = "SELECT count(*) FROM outbox.parked_messages WHERE waits_until IS NOT NULL"


@pytest.fixture
def during(dsn: str, amqp: str, monkeypatch: pytest.MonkeyPatch) -> During:
    """Relay to the exchange x in this process while a step runs in a thread; what waits is tried often."""
    monkeypatch.setattr(parking, "RETRY_EVERY", 0.02)

    def during(step: Callable[[], Any], **options: Any) -> Relay:
        relay = Relay(dsn, Publisher(amqp, source="/test", exchange="x", **options), **options)

        async def main() -> None:
            running = asyncio.create_task(relay.run())
            await asyncio.wait({running, asyncio.create_task(asyncio.to_thread(step))}, return_when="FIRST_COMPLETED")
            relay.stop()
            await running

        asyncio.run(main())
        return relay

    return during


def write(conn: Conn, *messages: tuple[str, str | None, int]) -> None:
    """Write (topic, key, n), all in one transaction."""
    with conn.transaction():
        for topic, key, n in messages:
            conn.execute(
                "INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, %s, jsonb_build_object('n', %s::int))",
                (topic, key, n),
            )


def all_here(conn: Conn) -> None:
    wait_for(
        lambda: relayed(conn) and value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0, what="all went out"
    )


def ns(url: str) -> list[int]:
    return [payload["n"] for _, payload in take(url)]


def be_short(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(routes, "WAIT", seconds)
    monkeypatch.setattr(batch, "WAIT", seconds)


def test_what_no_queue_takes_waits_while_all_others_go_and_goes_when_a_queue_is_there(
    conn: Conn, amqp: str, during: During
) -> None:
    bind(amqp, "t.#")
    write(conn, ("late", "a", 1), ("t.1", "a", 2), ("late", "b", 3), ("t.1", "b", 4))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        assert (value(conn, WAITING), value(conn, PARKED)) == (2, 0)
        assert ns(amqp) == [2, 4]
        bind(amqp, "late")
        all_here(conn)

    relay = during(step)
    assert ns(amqp) == [1, 3]
    assert (relay.relayed, relay.parked) == (4, 0)


def test_in_strict_mode_it_delays_only_its_own_key_whose_order_it_keeps(conn: Conn, amqp: str, during: During) -> None:
    bind(amqp, "t.#")
    write(conn, ("late", "a", 1), ("t.1", "a", 2), ("late", "a", 3), ("t.1", "b", 4))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        write(conn, ("t.1", "a", 5), ("t.1", "b", 6))
        wait_for(lambda: relayed(conn))
        assert ns(amqp) == [4, 6]
        assert value(conn, WAITING) == 4
        bind(amqp, "late")
        all_here(conn)
        write(conn, ("t.1", "a", 7))
        wait_for(lambda: relayed(conn))

    during(step, strict=True)
    assert ns(amqp) == [1, 2, 3, 5, 7]


def test_what_is_behind_it_and_has_no_queue_itself_waits_for_its_own(conn: Conn, amqp: str, during: During) -> None:
    bind(amqp, "t.#")
    write(conn, ("late", "a", 1), ("later", "a", 2), ("t.1", "a", 3))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        bind(amqp, "late")
        wait_for(lambda: value(conn, WAITING) == 2)
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages WHERE routing_key = 'later'") == 1)
        assert ns(amqp) == [1]
        bind(amqp, "later")
        all_here(conn)

    during(step, strict=True)
    assert ns(amqp) == [2, 3]


def test_it_is_parked_after_its_time_and_the_next_one_at_once_until_there_is_a_queue(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch, outbox: Outbox
) -> None:
    bind(amqp, "t.#")
    be_short(monkeypatch, 0.3)
    write(conn, ("never", None, 1))

    def step() -> None:
        wait_for(lambda: value(conn, PARKED) == 1)
        write(conn, ("never", None, 2))
        wait_for(lambda: relayed(conn))
        assert (value(conn, PARKED), value(conn, WAITING)) == (2, 0)
        bind(amqp, "never")
        write(conn, ("never", None, 3))
        wait_for(lambda: relayed(conn))
        assert ns(amqp) == [3], "what is parked waits for a person"
        with channel(amqp) as opened:
            opened.queue_unbind("q", "x", "never")
        monkeypatch.setattr(routes, "WAIT", 600.0)
        write(conn, ("never", None, 4))
        wait_for(lambda: relayed(conn))
        assert (value(conn, PARKED), value(conn, WAITING)) == (2, 1), "a new time has begun"
        bind(amqp, "never")
        assert outbox("parked", "--retry").out
        all_here(conn)

    relay = during(step)
    assert sorted(ns(amqp)) == [1, 2, 4]
    assert relay.parked == 2


def test_in_strict_mode_what_is_behind_it_is_parked_with_it_and_goes_with_it(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch, outbox: Outbox
) -> None:
    bind(amqp, "t.#")
    be_short(monkeypatch, 0.2)
    write(conn, ("never", "a", 1), ("t.1", "a", 2))

    def step() -> None:
        wait_for(lambda: value(conn, PARKED) == 2)
        write(conn, ("t.1", "a", 3), ("t.1", "b", 4))
        wait_for(lambda: relayed(conn))
        assert (value(conn, PARKED), ns(amqp)) == (3, [4])
        bind(amqp, "never")
        outbox("parked", "--retry")
        all_here(conn)

    during(step, strict=True)
    assert ns(amqp) == [1, 2, 3]


def test_what_is_behind_a_message_that_a_person_has_deleted_goes_out(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(amqp, "t.#")
    monkeypatch.setattr(batch, "WAIT", 0.5)
    write(conn, ("never", "a", 1), ("t.1", "a", 2), ("t.1", "a", 3))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        conn.execute("DELETE FROM outbox.parked_messages WHERE topic = 'never'")
        all_here(conn)

    during(step, strict=True)
    assert ns(amqp) == [2, 3]


def test_what_is_behind_it_waits_as_long_as_it_does(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(amqp, "t.#")
    monkeypatch.setattr(batch, "WAIT", 0.01)
    write(conn, ("late", "a", 1), ("t.1", "a", 2))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        end = value(conn, "SELECT min(waits_until) FROM outbox.parked_messages")
        wait_for(lambda: value(conn, "SELECT min(waits_until) FROM outbox.parked_messages") > end, what="it goes on")
        bind(amqp, "late")
        all_here(conn)

    during(step, strict=True)
    assert ns(amqp) == [1, 2]


def test_more_routing_keys_than_are_tried_at_once_all_have_their_turn(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "ROUTES", 7)
    monkeypatch.setattr(parking, "PAGE", 5)
    bind(amqp, "t.#")
    write(conn, *((f"late.{n % 30}", f"k{n}", n) for n in range(90)))

    def step() -> None:
        wait_for(lambda: relayed(conn))
        assert value(conn, WAITING) == 90
        for n in range(29):
            bind(amqp, f"late.{n}")
        wait_for(lambda: value(conn, WAITING) == 3)
        bind(amqp, "late.29")
        all_here(conn)

    during(step)
    assert sorted(ns(amqp)) == list(range(90))


def test_a_topic_without_a_queue_costs_one_message_of_each_part(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log tries the routing key, nothing is tried or written beside it, and the others have all the time."""
    bind(amqp, "t.#")
    monkeypatch.setattr(parking, "TRIED_FOR", 3600.0)
    statements: Counter[bytes] = Counter()
    parts = 0

    class Counting(Publisher):
        returns = 0

        def _returned(self, *args: Any) -> None:
            Counting.returns += 1
            super()._returned(*args)

    async def ask(self: Log, statement: bytes, **params: Any) -> Any:
        statements[statement] += 1
        return await asked(self, statement, **params)

    asked = Log.ask
    monkeypatch.setattr(Log, "ask", ask)
    monkeypatch.setattr(sys.modules[__name__], "Publisher", Counting)

    def step() -> None:
        nonlocal parts
        for n in range(3):
            write(conn, *(("nowhere" if m % 10 == 0 else "t.1", f"k{m}", 100 * n + m) for m in range(100)))
            wait_for(lambda: relayed(conn))
        parts = statements[log.SQL["relay_advance"]]
        before = statements[parking.SQL["parked_probes"]]
        wait_for(lambda: statements[parking.SQL["parked_probes"]] >= before + 5, what="it looks for what to try")

    during(step)
    assert value(conn, WAITING) == 30
    assert len(ns(amqp)) == 270
    assert 3 <= Counting.returns <= parts, "of thirty messages, the first of each part is published"
    assert statements[parking.SQL["parked_settle"]] == 0


def test_in_strict_mode_a_topic_without_a_queue_costs_no_more_statements(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the log with such messages takes the round trips of one without: their keys are asked for with all others."""
    bind(amqp, "t.#")
    monkeypatch.setattr(parking, "RETRY_EVERY", 3600.0)
    statements: Counter[str] = Counter()
    names = {**{text: name for name, text in parking.SQL.items()}, log.SQL["relay_advance"]: "relay_advance"}

    async def ask(self: Log, statement: bytes, **params: Any) -> Any:
        statements[names.get(statement, "other")] += 1
        return await asked(self, statement, **params)

    asked = Log.ask
    monkeypatch.setattr(Log, "ask", ask)
    counts: list[Counter[str]] = []

    def step() -> None:
        wait_for(lambda: statements["parked_to_retry"], what="it has looked for what it could send again")
        for lost in (0, 30):
            statements.clear()
            write(conn, *(("t.1", f"k{n}", n) for n in range(90)), *(("no", f"lost{n % 3}", n) for n in range(lost)))
            wait_for(lambda: relayed(conn))
            counts.append(Counter({name: count for name, count in statements.items() if name != "other"}))

    during(step, strict=True)
    assert value(conn, WAITING) == 30
    for count in counts:
        assert count == dict.fromkeys(("parked_keys", "relay_advance"), count["relay_advance"]), (
            "one of each for a part"
        )
    assert 1 <= counts[1]["relay_advance"] <= counts[0]["relay_advance"], "the first parts of a relay are small"


@pytest.mark.parametrize(
    ("kind", "durable", "by_key"),
    [
        ("topic", True, True),
        ("direct", True, True),
        ("fanout", True, True),
        ("headers", True, False),
        ("topic", False, True),
        ("headers", False, False),
    ],
)
def test_an_exchange_that_is_there_is_asked_whether_it_routes_by_the_routing_key(
    amqp: str, kind: str, durable: bool, by_key: bool
) -> None:
    with channel(amqp) as opened:
        opened.exchange_declare("an 'x'", kind, durable=durable)

    async def main() -> bool:
        publisher = Publisher(amqp, source="/test", exchange="an 'x'")
        await publisher._connect()
        await publisher.close()
        return publisher._one_for_all

    assert asyncio.run(main()) is by_key


def test_a_batch_is_told_in_one_line(
    conn: Conn, amqp: str, during: During, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "outbox.relay")
    be_short(monkeypatch, 0.5)
    bind(amqp, "t.#")
    write(conn, *((f"never.{n % 5}", None, n) for n in range(200)))
    during(lambda: wait_for(lambda: value(conn, PARKED) == 200))
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expired = [int(line.split()[0]) for line in told if "messages that no queue has taken are parked" in line]
    assert sum(expired) == 200
    assert len(told) <= 5 + len(expired) <= 10, "a line for each part of the window: the first ones are small"
    assert "messages wait for a queue that takes them ('never.0', 'never.1', 'never.2', …)" in told[0]
    assert "0 parked messages relayed" not in caplog.text


def test_what_waits_when_a_relay_ends_is_tried_by_the_next_one(
    conn: Conn, amqp: str, spawn: Spawn, outbox: Outbox
) -> None:
    """Also by one that drains: it doesn't stay for it."""
    bind(amqp, "t.#")
    write(conn, ("late", None, 1))
    env = {"OUTBOX_AMQP_URL": amqp}
    assert spawn("relay", "--exchange", "x", "--drain", env=env).wait() == 0
    (row,) = outbox("parked", "--json").json
    assert "unroutable: 312 NO_ROUTE (routing key 'late')" in row["reason"]
    assert row["waits_until"] is not None
    assert "waits for a queue" in " ".join(outbox("parked").out.split())
    bind(amqp, "late")
    killed = spawn("relay", "--exchange", "x", env={**env, "OUTBOX_KILL_AT": "K9"})
    assert killed.wait() == -signal.SIGKILL
    assert spawn("relay", "--exchange", "x", "--drain", env=env).wait() == 0
    assert set(ns(amqp)) == {1}


def test_a_message_that_is_refused_does_not_wait(
    conn: Conn, amqp: str, during: During, caplog: pytest.LogCaptureFixture
) -> None:
    bind(amqp, "t.#")
    conn.execute("INSERT INTO outbox.messages (topic, headers) VALUES ('t.1', '{\"ratio\": 0.5}')")
    during(lambda: wait_for(lambda: value(conn, PARKED) == 1))
    assert "1 messages are parked; the first one, " in caplog.text


def test_a_routing_key_has_one_time_for_all_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MOST", 2)
    known = routes.Routes()
    assert [known.returned("a", now) for now in (0, 59, 60, 100)] == [60, 1, None, None]
    known.routed("b")
    assert known.returned("a", 100) is None
    known.routed("a")
    assert known.returned("a", 100) == 60
    assert known.refused("r", 100) == 3600
    known.routed("r")
    assert [known.returned(each, 130) for each in "bcba"] == [60, 60, 60, 60], "the oldest one was forgotten"


@pytest.mark.parametrize("strict", [False, True])
def test_what_a_broker_refuses_for_a_while_goes_when_it_takes_messages_again(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """As a cluster does while a majority of its nodes is away."""
    monkeypatch.setattr(parking, "RETRY_EVERY", 0.02)
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.001, max=0.001))
    away, taken = threading.Event(), []

    def answer(message: Message) -> None:
        if away.is_set():
            message.nack()
        else:
            taken.append(message)
            message.ack()

    async def main(url: str) -> None:
        relay = Relay(dsn, Publisher(url, source="/test", strict=strict), strict=strict)
        running = asyncio.create_task(relay.run())
        stepping = asyncio.create_task(asyncio.to_thread(step))
        await asyncio.wait({running, stepping}, return_when="FIRST_COMPLETED")
        relay.stop()
        await running
        await stepping

    def step() -> None:
        away.set()
        write(conn, *((f"t.{n}", f"k{n % 5}", n) for n in range(50)))
        wait_for(lambda: relayed(conn), timeout=20)
        assert (value(conn, WAITING), value(conn, PARKED), taken) == (50, 0, [])
        away.clear()
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0, timeout=20)

    with ScriptedBroker(answer) as broker:
        asyncio.run(main(broker.url))
    numbers = [json.loads(message.body)["n"] for message in taken]
    assert sorted(numbers) == list(range(50))
    if strict:
        for key in range(5):
            mine = [n for n in numbers if n % 5 == key]
            assert mine == sorted(mine)
