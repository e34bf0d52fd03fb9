"""Several brokers: which one is tried next, and when one that is silent is left."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from pika import spec

from kit.publishing import Sender, numbers, some
from kit.scripted_broker import Message, ScriptedBroker, confirm, hold
from kit.servers import DEADLINE, free_port, wait_for
from outbox.messages.rabbitmq import batch, connection, silence
from outbox.messages.rabbitmq.brokers import Brokers

Start = Callable[..., Sender]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(connection, "LONGEST_WAIT", 0.05)


@pytest.fixture
def start() -> Iterator[Start]:
    senders: list[Sender] = []

    def start(*urls: str, between: str = ",", **options: Any) -> Sender:
        senders.append(Sender(between.join(urls), **options))
        return senders[-1]

    yield start
    for sender in senders:
        sender.end()


def nowhere() -> str:
    return f"amqp://me:canary@127.0.0.1:{free_port()}/"


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent broker count as away soon, and one that confirms nothing be left soon."""
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    monkeypatch.setattr(connection, "CLOSE_WITHIN", 0.1)
    monkeypatch.setattr(silence, "SAID_AFTER", 0.1)
    monkeypatch.setattr(silence, "LEFT_AFTER", 0.4)


@pytest.mark.parametrize("between", [",", " ", ", ", "\n", " ,\t"])
def test_the_next_broker_is_tried_at_once(start: Start, between: str) -> None:
    with ScriptedBroker(confirm) as broker:
        sender = start(nowhere(), nowhere(), broker.url, between=between)
        assert sender.deliver(some(1, 2)).result(DEADLINE) == {}
    assert numbers(broker.messages) == [1, 2]
    assert sender.troubles == [], "only a round in which all fail is worth a word"


def test_a_broker_that_takes_connections_and_is_silent_keeps_no_other_from_being_tried(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_impatient(monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as silent, ScriptedBroker(confirm) as broker:
        sender = start(f"amqp://127.0.0.1:{silent.getsockname()[1]}/", broker.url)
        assert sender.deliver(some(1)).result(DEADLINE) == {}


def test_each_address_of_a_name_is_tried(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)
    resolve = socket.getaddrinfo

    def two_addresses(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "rabbit.example":
            return resolve(host, *rest, **options)
        return [found for address in ("127.0.0.2", "127.0.0.1") for found in resolve(address, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    with ScriptedBroker(confirm) as broker, socket.create_server(("127.0.0.2", broker.port)):
        sender = start(broker.url.replace("127.0.0.1", "rabbit.example"))
        assert sender.deliver(some(1)).result(DEADLINE) == {}


def test_a_connection_that_is_lost_is_opened_at_the_next_broker(start: Start) -> None:
    with ScriptedBroker(hold) as first, ScriptedBroker(hold) as second:
        sender = start(first.url, second.url)
        delivering = sender.deliver(some(1, 2))
        wait_for(lambda: len(first.messages) == 2)
        first.messages[0].ack()
        first.lines[0].close()
        wait_for(lambda: second.messages)
        assert numbers(second.messages) == [2], "what was confirmed is not sent again"
        second.lines[0].drop()
        wait_for(lambda: len(first.messages) == 3, what="after the last one comes the first one again")
        first.messages[2].ack()
        assert delivering.result(DEADLINE) == {}


def test_a_broker_without_the_exchange_is_left_for_one_that_has_it(start: Start) -> None:
    with ScriptedBroker(hold) as first, ScriptedBroker(confirm) as second:
        first.instead[spec.Exchange.Declare] = lambda line, channel: line.close_channel(channel, 404, "NOT_FOUND")
        assert start(first.url, second.url, exchange="x").deliver(some(1)).result(DEADLINE) == {}
    assert numbers(second.messages) == [1]


def test_what_is_wrong_with_each_is_told_in_one_line_without_a_password(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    urls = [nowhere(), nowhere(), "amqp://me:canary@name.invalid/"]
    sender = start(*urls)
    sender.deliver(some(1))
    wait_for(lambda: sender.troubles)
    for url in urls[:2]:
        assert f"{url[18:-1]}: ConnectionRefusedError" in str(sender.troubles[0])
    assert "name.invalid:5672: gaierror" in str(sender.troubles[0])
    assert "canary" not in str(sender.troubles) + caplog.text


def test_a_url_may_have_commas_of_its_own() -> None:
    assert len(Brokers("amqp://a,b:c,d@h/?client_properties={'x':1,'y':2},amqp://h/%2Cv amqps://h/")._urls) == 3
    assert Brokers("amqp://a:b,c@h/")._urls[0].credentials.password == "b,c"
    assert Brokers("amqp://h/a%2Cb")._urls[0].virtual_host == "a,b"


def test_the_certificate_is_that_of_the_name_whatever_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("192.0.2.1", 5671))])
    found = asyncio.run(Brokers("amqps://rabbit.example/")._next())
    assert (found.host, found.ssl_options.server_hostname) == ("192.0.2.1", "rabbit.example")


# No confirm.


def test_that_a_broker_confirms_nothing_is_told_and_told_again_later_and_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_impatient(monkeypatch)
    monkeypatch.setattr(silence, "SAID_AFTER", 1.0)
    monkeypatch.setattr(silence, "LEFT_AFTER", DEADLINE)
    with ScriptedBroker(hold) as broker:
        sender = start(broker.url)
        delivering = sender.deliver(some(1))
        wait_for(lambda: len(sender.troubles) == 2)
        assert sender.troubles == [f"127.0.0.1:{broker.port}: no confirm for {n} s" for n in (1, 2)]
        broker.messages[0].ack()
        assert delivering.result(DEADLINE) == {}
        assert sender.troubles[-1] is None
        assert len(broker.lines) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_a_broker_that_confirms_nothing_is_left_and_all_is_sent_again_in_order(
    start: Start, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    be_impatient(monkeypatch)
    with ScriptedBroker(hold) as first, ScriptedBroker(confirm) as second:
        sender = start(first.url, second.url, strict=strict)
        assert sender.deliver(some(1, 2, 3, key="k")).result(DEADLINE) == {}
        wait_for(lambda: not first.lines[0].thread.is_alive(), what="its connection is closed")
    assert numbers(second.messages) == [1, 2, 3]
    assert numbers(first.messages) == ([1] if strict else [1, 2, 3])
    assert "no confirm for" in str(sender.troubles)
    assert sender.troubles[-1] is None


def test_a_broker_that_refuses_all_is_left_for_the_next_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.001, max=0.001))
    with ScriptedBroker(Message.nack) as first, ScriptedBroker(confirm) as second:
        sender = start(first.url, second.url)
        assert list(sender.deliver(some(1)).result(DEADLINE)) == [1]
        assert sender.deliver(some(1, 2)).result(DEADLINE) == {}
    assert (len(first.lines), numbers(second.messages)) == (1, [1, 2])


def test_a_broker_that_is_slow_is_not_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each confirm is a sign of life."""
    be_impatient(monkeypatch)
    monkeypatch.setattr(silence, "LEFT_AFTER", 1.0)

    def slowly(message: Any) -> None:
        threading.Timer(0.3 * int(message.body), message.ack).start()

    with ScriptedBroker(slowly) as broker:
        assert start(broker.url).deliver(some(*range(1, 8))).result(DEADLINE) == {}
    assert len(broker.lines) == 1


def test_a_broker_that_blocks_is_not_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has said so, and that ends by itself."""
    be_impatient(monkeypatch)
    with ScriptedBroker(hold) as broker, ScriptedBroker(confirm) as other:
        sender = start(broker.url, other.url)
        delivering: Future[Any] = sender.deliver(some(1))
        wait_for(lambda: broker.messages)
        broker.lines[0].block()
        looks = 0
        look = sender.publisher._silence.look

        def counted(now: float, waiting: bool) -> None:
            nonlocal looks
            looks += not waiting
            look(now, waiting)

        monkeypatch.setattr(sender.publisher._silence, "look", counted)
        wait_for(lambda: looks >= 3)
        broker.messages[0].ack()
        assert delivering.result(DEADLINE) == {}
        assert other.lines == []


def test_the_time_to_wait_grows_from_one_connection_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may leave one more copy of what is under way with the broker."""
    quiet, now = silence.Silence(), 0.0
    left: list[float] = []
    while len(left) < 7:
        quiet.look(now, waiting=True)
        if quiet.is_too_long():
            left.append(now)
        now += 1
    assert [round(later - earlier, -1) for earlier, later in zip([0.0, *left], left, strict=False)] == [
        60, 120, 240, 480, 960, 960, 960,
    ]  # fmt: skip
    quiet.end()
    assert (quiet.said, quiet.seconds) == (0, 0)


def test_a_process_that_was_frozen_blames_no_broker() -> None:
    quiet = silence.Silence()
    quiet.look(0, waiting=True)
    quiet.look(3600, waiting=True)
    assert quiet.said == 0
    assert not quiet.is_too_long()
