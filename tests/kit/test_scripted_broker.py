"""Tests that the scripted broker answers a real client as its script says, and records what it was sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
from pika import frame, spec

from kit.broker import channel
from kit.scripted_broker import Message, ScriptedBroker, hold
from kit.servers import DEADLINE, wait_for


class Publisher:
    """A client that doesn't wait for confirms, in a thread of its own. `events` is what it has received, in order."""

    def __init__(self, url: str) -> None:
        self.events: list[Any] = []
        self.channel: Any = None
        self.ended = False
        self.connection = pika.SelectConnection(
            pika.URLParameters(url),
            on_open_callback=lambda _: self._open(),
            on_close_callback=lambda _, reason: self._end(reason),
            on_open_error_callback=lambda _, reason: self._end(reason),
        )
        self.connection.add_on_connection_blocked_callback(lambda *_: self.events.append("blocked"))
        self.connection.add_on_connection_unblocked_callback(lambda *_: self.events.append("unblocked"))
        self._thread = threading.Thread(target=self.connection.ioloop.start, daemon=True)
        self._thread.start()
        self.wait_for("ready")

    def publish(self, *bodies: bytes) -> None:
        def publish() -> None:
            for body in bodies:
                self.channel.basic_publish("ex", "key", body, mandatory=True)

        self._do(publish)

    def open_again(self) -> None:
        self._do(self._open)

    def wait_for(self, *events: Any) -> None:
        """Waits until it has received these events, and no others since the last call."""
        wait_for(lambda: len(self.events) >= len(events), what=f"{events}; there is {self.events}")
        assert self.events == list(events)
        self.events.clear()

    def close(self) -> None:
        if not self.ended:
            self._do(self.connection.close)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self.connection.ioloop.close()

    def _do(self, action: Callable[[], Any]) -> None:
        self.connection.ioloop.add_callback_threadsafe(action)

    def _open(self) -> None:
        self.connection.channel(on_open_callback=self._opened)

    def _opened(self, opened: Any) -> None:
        self.channel = opened
        opened.add_on_close_callback(self._channel_closed)
        opened.add_on_return_callback(lambda _, method, __, body: self.events.append((method.reply_code, body)))
        opened.confirm_delivery(self._told, callback=lambda _: self.events.append("ready"))

    def _told(self, told: Any) -> None:
        answer = told.method
        self.events.append((answer.NAME.removeprefix("Basic.").lower(), answer.delivery_tag, answer.multiple))

    def _channel_closed(self, _: Any, reason: Exception) -> None:
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            self.events.append(("closed", reason.reply_code))

    def _end(self, reason: Exception) -> None:
        self.ended = True
        self.events.append(type(reason).__name__)
        self.connection.ioloop.stop()


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    """Yields a broker that leaves every answer to the test."""
    with ScriptedBroker(hold) as broker:
        yield broker


@pytest.fixture
def publisher(broker: ScriptedBroker) -> Iterator[Publisher]:
    publisher = Publisher(broker.url)
    yield publisher
    publisher.close()


def arrived(broker: ScriptedBroker, number: int) -> list[Message]:
    wait_for(lambda: len(broker.messages) >= number, what=f"{number} messages arrive")
    return broker.messages


def test_without_a_script_every_message_is_confirmed() -> None:
    with ScriptedBroker() as broker, channel(broker.url) as opened:
        opened.confirm_delivery()
        for body in (b"", b"small", b"x" * 500_000):
            opened.basic_publish("", "key", body)
    assert [len(message.body) for message in broker.messages] == [0, 5, 500_000]


def test_each_script_answers_one_message_and_the_last_one_all_others() -> None:
    with ScriptedBroker(Message.ack, Message.nack) as broker, channel(broker.url) as opened:
        opened.confirm_delivery()
        opened.basic_publish("", "key", b"")
        for _ in range(2):
            with pytest.raises(pika.exceptions.NackError):
                opened.basic_publish("", "key", b"")


def test_confirms_come_in_the_order_that_the_test_wants(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"a", b"b", b"c")
    first, second, third = arrived(broker, 3)
    third.ack()
    first.nack()
    second.ack()
    publisher.wait_for(("ack", 3, False), ("nack", 1, False), ("ack", 2, False))


def test_one_answer_for_many(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"a", b"b", b"c", b"d")
    _, second, _, fourth = arrived(broker, 4)
    second.ack(multiple=True)
    fourth.nack(multiple=True)
    publisher.wait_for(("ack", 2, True), ("nack", 4, True))


def test_return_comes_before_its_confirm_or_late(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"in time", b"late", b"")
    first, second, empty = arrived(broker, 3)
    first.return_()
    first.ack()
    second.ack()
    second.return_(313, "NO_CONSUMERS")
    empty.return_()
    publisher.wait_for((312, b"in time"), ("ack", 1, False), ("ack", 2, False), (313, b"late"), (312, b""))


def test_tags_start_at_one_on_a_channel_that_was_opened_again(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"a", b"b")
    arrived(broker, 2)[1].close_channel(404, "NOT_FOUND")
    publisher.wait_for(("closed", 404))
    publisher.open_again()
    publisher.wait_for("ready")
    publisher.publish(b"c")
    arrived(broker, 3)[2].ack()
    publisher.wait_for(("ack", 1, False))
    assert [(message.channel, message.tag) for message in broker.messages] == [(1, 1), (1, 2), (1, 1)]
    assert broker.count(spec.Channel.Open) == broker.count(spec.Confirm.Select) == 2


def test_what_was_sent_on_a_channel_before_its_close_was_known_is_thrown_away() -> None:
    with ScriptedBroker(Message.close_channel, hold) as broker:
        publisher = Publisher(broker.url)
        publisher.publish(b"first", b"second", b"third")
        publisher.wait_for(("closed", 406))
        publisher.close()
    assert [message.body for message in broker.messages] == [b"first"]


def test_blocked_and_unblocked(broker: ScriptedBroker, publisher: Publisher) -> None:
    broker.lines[0].block()
    publisher.wait_for("blocked")
    broker.lines[0].unblock()
    publisher.wait_for("unblocked")


def test_cut_connection_ends_and_the_next_one_starts_afresh(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"a")
    arrived(broker, 1)[0].line.drop()
    publisher.wait_for("StreamLostError")
    another = Publisher(broker.url)
    another.publish(b"b")
    arrived(broker, 2)[1].ack()
    another.wait_for(("ack", 1, False))
    another.close()
    assert [(message.line.number, message.tag) for message in broker.messages] == [(1, 1), (2, 1)]


def test_closed_connection_says_why(broker: ScriptedBroker, publisher: Publisher) -> None:
    broker.lines[0].close()
    publisher.wait_for("ConnectionClosedByBroker")


def test_it_knows_all_that_a_message_came_with() -> None:
    properties = pika.BasicProperties(
        content_type="application/json", delivery_mode=2, message_id="7", headers={"attempt": 1, "deep": {"a": ["b"]}}
    )
    with ScriptedBroker() as broker, channel(broker.url) as opened:
        opened.exchange_declare("events", "topic", durable=True)
        opened.queue_declare("letters")
        opened.confirm_delivery()
        opened.basic_publish("events", "post.published", b"{}", properties, mandatory=True)
    (message,) = broker.messages
    assert (message.exchange, message.routing_key, message.mandatory) == ("events", "post.published", True)
    assert message.properties == properties
    assert broker.count(spec.Exchange.Declare) == broker.count(spec.Connection.Close) == 1


def test_without_confirms_a_message_has_no_tag(broker: ScriptedBroker) -> None:
    with channel(broker.url) as opened:
        opened.basic_publish("", "key", b"")
        assert arrived(broker, 1)[0].tag == 0


def test_heartbeats_are_answered(broker: ScriptedBroker) -> None:
    beat = frame.Heartbeat().marshal()
    with socket.create_connection(("127.0.0.1", broker.port), DEADLINE) as line:
        line.sendall(beat)
        assert line.recv(100) == beat


def test_a_test_says_what_to_do_in_place_of_an_answer(broker: ScriptedBroker, publisher: Publisher) -> None:
    broker.instead[spec.Confirm.Select] = lambda line, channel: line.close_channel(channel, 540, "NOT_IMPLEMENTED")
    publisher.open_again()
    publisher.wait_for(("closed", 540))
    broker.instead.clear()
    publisher.open_again()
    publisher.wait_for("ready")
    broker.instead[spec.Basic.Publish] = lambda line, _: line.drop()
    publisher.publish(b"never complete")
    publisher.wait_for("StreamLostError")
    assert broker.messages == []


def test_a_test_may_leave_the_client_without_an_answer(broker: ScriptedBroker) -> None:
    broker.instead[frame.ProtocolHeader] = lambda line, _: None
    with socket.create_connection(("127.0.0.1", broker.port), DEADLINE) as line:
        line.sendall(frame.ProtocolHeader().marshal() + frame.Heartbeat().marshal())
        assert line.recv(100) == frame.Heartbeat().marshal(), "it lives, and has said nothing before"


def test_half_a_frame_and_then_nothing(broker: ScriptedBroker, publisher: Publisher) -> None:
    publisher.publish(b"a")
    (message,) = arrived(broker, 1)
    message.line.write(frame.Method(1, spec.Basic.Ack(1)).marshal()[:10])
    message.line.drop()
    publisher.wait_for("StreamLostError")
