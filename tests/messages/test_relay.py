"""F50-F54: messages reach a real RabbitMQ through real relay processes, whatever is killed. What the broker has counts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kit.broker import Broker, channel, queue_depth
from kit.deliveries import bind, check_order, first_of_each, give_up, relayed, take, write
from kit.pipelines import value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
Start = Callable[..., Process]

WRITE = "INSERT INTO outbox.messages (topic, key, payload, headers) VALUES (%s, %s, %s, %s)"


@pytest.fixture
def start(spawn: Spawn, amqp: str) -> Start:
    """Start `outbox relay` to the exchange x of the test's own virtual host."""

    def start(*options: str, env: dict[str, str] | None = None, url: str = amqp) -> Process:
        return spawn("relay", "--exchange", "x", *options, env={"OUTBOX_AMQP_URL": url, **(env or {})})

    return start


def held_transactions(conn: Conn) -> set[Any]:
    """Return the relay's transactions that are open from before one of its beats until after the next one."""
    beat = "SELECT updated_at FROM outbox.relays"
    opened = "SELECT pid, xact_start FROM pg_stat_activity WHERE application_name = 'outbox relay' AND xact_start IS NOT NULL"
    before, last = set(conn.execute(opened).fetchall()), value(conn, beat)
    for _ in range(2):
        wait_for(lambda last=last: value(conn, beat) > last, what="a beat")  # type: ignore[misc]
        last = value(conn, beat)
    return before & set(conn.execute(opened).fetchall())


def test_messages_arrive_in_order_persistent_and_as_cloud_events(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp)
    conn.execute(WRITE, ("posts.done", "p1", '{"n": 1}', '{"trace": "abc", "tries": 3, "cloudEvents_id": "forged"}'))
    conn.execute("INSERT INTO outbox.messages (topic) VALUES ('bare')")
    assert start("--drain", "--source", "/shop").wait() == 0
    (first, payload), (bare, nothing) = take(amqp)
    ours = conn.execute("SELECT message_id::text FROM outbox.messages ORDER BY id").fetchall()
    assert (payload, nothing) == ({"n": 1}, None)
    assert (first.delivery_mode, first.content_type) == (2, "application/json")
    assert first.headers["cloudEvents_id"] == ours[0][0] != first.message_id
    assert UUID(first.headers["cloudEvents_id"]).version == 7
    assert (first.headers["trace"], first.headers["tries"]) == ("abc", 3)
    told = {name: first.headers[f"cloudEvents_{name}"] for name in ("source", "type", "subject", "specversion")}
    assert told == {"source": "/shop", "type": "posts.done", "subject": "p1", "specversion": "1.0"}
    assert first.headers["cloudEvents_sequence"] < bare.headers["cloudEvents_sequence"]
    assert "cloudEvents_subject" not in bare.headers


def test_the_routing_key_is_a_template(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp, "eu.*.k1")
    conn.execute(WRITE, ("done", "k1", '{"n": 1}', None))
    assert start("--drain", "--routing-key", "eu.{topic}.{key}").wait() == 0
    assert [payload for _, payload in take(amqp)] == [{"n": 1}]


def test_what_cannot_go_out_is_parked_with_its_reason_and_goes_when_it_can(
    conn: Conn, start: Start, amqp: str, spawn: Spawn
) -> None:
    bind(amqp, "t.#")
    conn.execute(WRITE, ("elsewhere", "k", '{"n": 1}', None))
    conn.execute(WRITE, ("t.1", "k", '{"n": 2}', '{"ratio": 0.5}'))
    conn.execute(WRITE, ("t." + "x" * 300, "k", '{"n": 3}', None))
    conn.execute(WRITE, ("t.2", "k", '{"n": 4}', None))
    relay = start()
    wait_for(lambda: relayed(conn))
    assert [payload["n"] for _, payload in take(amqp)] == [4]
    reasons = [row[0] for row in conn.execute("SELECT reason FROM outbox.parked_messages ORDER BY id").fetchall()]
    for reason, words in zip(
        reasons, ("unroutable: 312 NO_ROUTE", "can't carry it: the header 'ratio': 0.5", "255 bytes"), strict=True
    ):
        assert words in reason
    give_up(conn)
    bind(amqp, "elsewhere")
    first = value(conn, "SELECT min(id) FROM outbox.parked_messages")
    assert spawn("parked", "--retry", str(first)).wait() == 0
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages") == 2, what="it has gone out")
    assert [payload["n"] for _, payload in take(amqp)] == [1]
    assert spawn("parked", "--retry").wait() == 0
    wait_for(lambda: value(conn, "SELECT count(*) FILTER (WHERE retry) FROM outbox.parked_messages") == 0)
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 2, "what can't go waits again"
    assert relay.running


def test_in_strict_mode_later_messages_of_a_key_wait_parked_behind_it(
    conn: Conn, start: Start, amqp: str, spawn: Spawn
) -> None:
    bind(amqp, "t.#")
    relay = start("--strict")
    conn.execute(WRITE, ("elsewhere", "a", '{"n": 1}', None))
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages") == 1)
    conn.execute(WRITE, ("t.2", "a", '{"n": 2}', None))
    conn.execute(WRITE, ("t.3", "b", '{"n": 3}', None))
    wait_for(lambda: relayed(conn))
    assert [payload["n"] for _, payload in take(amqp)] == [3], "another key goes on"
    assert "behind" in value(conn, "SELECT reason FROM outbox.parked_messages ORDER BY id DESC LIMIT 1")
    give_up(conn)
    bind(amqp, "elsewhere")
    assert spawn("parked", "--retry").wait() == 0
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0)
    assert [payload["n"] for _, payload in take(amqp)] == [1, 2]
    assert relay.running


@pytest.mark.parametrize("point", ["K9:40", "K9:900", "K10", "K10:3"])
def test_f51_a_relay_killed_at_any_point_loses_and_inverts_nothing(
    conn: Conn, start: Start, amqp: str, point: str
) -> None:
    bind(amqp)
    write(conn, 1500)
    victim = start("--strict", env={"OUTBOX_KILL_AT": point})
    assert victim.wait() == -signal.SIGKILL, victim.text()
    assert start("--strict", "--drain").wait() == 0
    deliveries = take(amqp)
    assert sorted(first_of_each(deliveries)) == list(range(1500)), "every message has arrived"
    check_order(deliveries)
    assert len({properties.message_id for properties, _ in deliveries}) == len(deliveries), "an id for each attempt"


def test_f51_the_second_relay_of_a_name_stands_by_and_takes_over(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp)
    first = start()
    wait_for(lambda: value(conn, "SELECT owner IS NOT NULL FROM outbox.relays"))
    second = start()
    wait_for(lambda: "standing by" in second.text(), what="the second one sees that the name is taken")
    write(conn, 10)
    wait_for(lambda: relayed(conn))
    first.kill9()
    write(conn, 10, first=10)
    wait_for(lambda: relayed(conn), what="the second one has taken over")
    assert [payload["n"] for _, payload in take(amqp)] == list(range(20))
    assert second.running


def test_f51_a_relay_that_was_frozen_is_fenced_when_it_comes_back(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp)
    write(conn, 6_000)
    zombie = start("--strict")
    wait_for(lambda: queue_depth(amqp, "q") > 200, what="it is in the middle of it")
    zombie.freeze()
    heir = start("--strict")
    wait_for(lambda: relayed(conn), what="the heir has done the rest")
    zombie.send(signal.SIGCONT)
    wait_for(lambda: "taken over" in zombie.text() or "runs elsewhere" in zombie.text(), what="the late one learns it")
    deliveries = take(amqp)
    assert sorted(first_of_each(deliveries)) == list(range(6_000))
    check_order(deliveries)
    assert heir.running
    assert zombie.running


def test_f52_a_killed_broker_costs_nothing_but_time(conn: Conn, start: Start, broker: Broker, amqp: str) -> None:
    bind(amqp)
    write(conn, 6000)
    relay = start("--strict")
    wait_for(lambda: queue_depth(amqp, "q") > 100)
    broker.kill()
    write(conn, 100, first=6000)
    wait_for(lambda: value(conn, "SELECT trouble FROM outbox.relays"), what="the relay says what is wrong")
    assert held_transactions(conn) == set(), "no transaction is held meanwhile"
    broker.start()
    wait_for(lambda: relayed(conn), what="the relay goes on by itself")
    wait_for(lambda: value(conn, "SELECT trouble IS NULL FROM outbox.relays"), what="and says that it is over")
    deliveries = take(amqp)
    assert sorted(first_of_each(deliveries)) == list(range(6100))
    check_order(deliveries)
    assert relay.running


def test_f54_a_backlog_of_a_long_outage_drains_in_order(conn: Conn, start: Start, broker: Broker, amqp: str) -> None:
    bind(amqp)
    broker.kill()
    write(conn, 1)
    relay = start("--strict")
    wait_for(lambda: value(conn, "SELECT trouble FROM outbox.relays"), what="the relay has noticed")
    conn.execute("SET lock_timeout = '120s'")  # a writer waits for no relay
    write(conn, 7999, first=1)
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0, "an outage costs no message its attempts"
    broker.start()
    wait_for(lambda: relayed(conn))
    deliveries = take(amqp)
    assert sorted(first_of_each(deliveries)) == list(range(8000))
    check_order(deliveries)
    assert relay.running


def test_f52_a_missing_exchange_is_said_and_waited_for(conn: Conn, start: Start, amqp: str) -> None:
    write(conn, 3)
    relay = start()
    wait_for(lambda: "NOT_FOUND" in str(value(conn, "SELECT trouble FROM outbox.relays")))
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0
    bind(amqp)
    wait_for(lambda: relayed(conn))
    assert [payload["n"] for _, payload in take(amqp)] == [0, 1, 2]
    assert relay.running


def test_f52_what_a_full_queue_refuses_is_tried_again_and_then_parked(conn: Conn, start: Start, amqp: str) -> None:
    with channel(amqp) as opened:
        opened.exchange_declare("x", "topic", durable=True)
        opened.queue_declare("q", durable=True, arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
        opened.queue_bind("q", "x", "#")
    write(conn, 4)
    start()
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.relays"))
    wait_for(lambda: queue_depth(amqp, "q") == 2)
    assert len(take(amqp)) == 2
    wait_for(lambda: relayed(conn))
    delivered = 2 + len(take(amqp))
    assert delivered + value(conn, "SELECT count(*) FROM outbox.parked_messages") == 4


def test_f53_an_alarm_blocks_without_a_transaction_and_drains_afterwards(
    conn: Conn, start: Start, broker: Broker, amqp: str
) -> None:
    bind(amqp)
    write(conn, 1)
    relay = start()
    wait_for(lambda: relayed(conn))
    broker.alarm(True)
    write(conn, 500, first=1)
    wait_for(lambda: "blocks" in str(value(conn, "SELECT trouble FROM outbox.relays")), what="the relay says it")
    assert held_transactions(conn) == set()
    broker.alarm(False)
    wait_for(lambda: relayed(conn))
    assert sorted(first_of_each(take(amqp))) == list(range(501))
    assert relay.running


def test_f50_messages_that_commit_late_and_out_of_order_all_arrive(
    conn: Conn, connect: Callable[..., Conn], start: Start, amqp: str
) -> None:
    bind(amqp)
    start()
    late = [connect(autocommit=False) for _ in range(3)]
    for number, writer in enumerate(late):
        write(writer, 10, first=1000 * (number + 1))
    write(conn, 200)
    wait_for(lambda: queue_depth(amqp, "q") == 200, what="the others don't wait")
    for writer in reversed(late):
        writer.commit()
    wait_for(lambda: relayed(conn))
    expected = [*range(200), *(n for start in (1000, 2000, 3000) for n in range(start, start + 10))]
    assert sorted(first_of_each(take(amqp))) == expected


def test_the_database_may_go_away_under_a_relay(conn: Conn, start: Start, amqp: str, admin_dsn: str) -> None:
    bind(amqp)
    write(conn, 5000)
    relay = start("--strict")
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        for least in (200, 1500, 3000):
            wait_for(lambda least=least: queue_depth(amqp, "q") > least)
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox relay'"
            )
    wait_for(lambda: relayed(conn))
    deliveries = take(amqp)
    assert sorted(first_of_each(deliveries)) == list(range(5000))
    check_order(deliveries)
    assert "standing by" not in relay.text(), "it knows its own name again"
    assert relay.running


def test_sigterm_ends_a_relay_and_frees_its_name(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp)
    relay = start()
    wait_for(lambda: value(conn, "SELECT owner FROM outbox.relays"))
    relay.send(signal.SIGTERM)
    assert relay.wait() == 0
    assert value(conn, "SELECT owner FROM outbox.relays") is None


def test_without_a_url_it_says_what_to_set(spawn: Spawn) -> None:
    relay = spawn("relay", env={"OUTBOX_AMQP_URL": ""})
    assert relay.wait() == 1
    assert "OUTBOX_AMQP_URL" in relay.text()


@pytest.mark.parametrize("between", [",", " "])
def test_of_several_urls_the_next_one_is_tried(conn: Conn, start: Start, amqp: str, between: str) -> None:
    bind(amqp)
    write(conn, 3)
    relay = start("--drain", url=f"amqp://me:canary-s3cret@127.0.0.1:1/{between}{amqp}")
    assert relay.wait() == 0
    assert len(take(amqp)) == 3
    assert "canary" not in relay.text()


def test_no_password_is_shown(conn: Conn, spawn: Spawn) -> None:
    relay = spawn("relay", env={"OUTBOX_AMQP_URL": "amqp://me:canary-s3cret@127.0.0.1:1/"})
    write(conn, 1)
    wait_for(lambda: value(conn, "SELECT trouble FROM outbox.relays"))
    assert "canary" not in relay.text()
    assert "canary" not in value(conn, "SELECT trouble FROM outbox.relays")
