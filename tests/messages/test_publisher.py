"""F55: confirms out of order, `multiple`, tags of a channel that was reopened, late returns: each answer finds its message.

What the scripted broker saw and what `deliver` returned counts, not what the publisher thinks. To learn what it takes
for confirmed, a test cuts its connection: what is not comes again.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from pika import frame, spec

from kit.publishing import Sender, numbers, outgoing, some
from kit.scripted_broker import Line, Message, ScriptedBroker, confirm, hold
from kit.servers import DEADLINE, wait_for
from outbox.errors import SettingsError
from outbox.messages.rabbitmq import batch, connection
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.target import Outgoing, Parked

Start = Callable[..., Sender]
# A method that ends elsewhere than its frame says.
NO_FRAME = b"\x01\0\1\0\0\0\0X"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(connection, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.01, max=0.05))


def be_patient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the broker have so many seconds for each answer."""
    monkeypatch.setattr(connection, "PATIENCE", seconds)
    monkeypatch.setattr(connection, "OPEN_WITHIN", 3 * seconds)
    monkeypatch.setattr(connection, "CLOSE_WITHIN", seconds / 5)


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    """A broker that leaves every answer to the test."""
    with ScriptedBroker(hold) as broker:
        yield broker


@pytest.fixture
def start() -> Iterator[Start]:
    senders = []

    def start(broker: ScriptedBroker, **options: Any) -> Sender:
        senders.append(Sender(options.pop("url", broker.url), **options))
        return senders[-1]

    yield start
    for sender in senders:
        sender.end()


@pytest.fixture
def sender(start: Start, broker: ScriptedBroker) -> Sender:
    return start(broker)


def arrived(broker: ScriptedBroker, number: int, after: int = 0) -> list[Message]:
    """Return the messages that have come since the first `after`, as soon as there are so many."""
    wait_for(
        lambda: len(broker.messages) >= after + number,
        what=f"{number} messages arrive after {after}; there are {numbers(broker.messages)}",
    )
    return broker.messages[after:]


def round_trip(broker: ScriptedBroker, line: Line) -> None:
    """Make sure that all that was sent has arrived, by a question that ends the channel: its answer comes last."""
    before = broker.count(spec.Channel.CloseOk)
    line.send(frame.Method(1, spec.Channel.Close(404, "ROUND_TRIP", 0, 0)))
    wait_for(lambda: broker.count(spec.Channel.CloseOk) > before)


def give_time(monkeypatch: pytest.MonkeyPatch, sender: Sender) -> None:
    """Has the next attempts wait as long as a busy machine takes, once the broker answers: one before may be unanswered."""
    monkeypatch.setattr(connection, "PATIENCE", DEADLINE)
    monkeypatch.setattr(connection, "OPEN_WITHIN", 3 * DEADLINE)
    for parameters in sender.publisher._brokers._urls:
        parameters.socket_timeout = parameters.stack_timeout = DEADLINE


def reasons(parked: Parked) -> dict[int, str]:
    return {number: unsent.reason for number, unsent in parked.items()}


def same_ids(messages: Sequence[Message]) -> bool:
    """Whether each attempt names its message, and is itself named as no other."""
    wire_ids = {message.properties.message_id for message in messages}
    stable = all(message.properties.headers["cloudEvents_id"] == f"m{int(message.body)}" for message in messages)
    return stable and len(wire_ids) == len(messages)


# Confirms.


def test_a_message_is_on_the_wire_all_that_a_consumer_needs(start: Start) -> None:
    with ScriptedBroker(confirm) as broker:
        sender = start(broker, exchange="events", declare="topic", routing_key="eu.{topic}.{key}")
        assert sender.deliver([outgoing(7, "k", headers='{"trace": "abc"}')]).result(DEADLINE) == {}
    (message,) = broker.messages
    assert (message.exchange, message.routing_key, message.mandatory) == ("events", "eu.t.7.k", True)
    assert (message.properties.delivery_mode, message.properties.content_type) == (2, "application/json")
    assert message.properties.headers == {
        "trace": "abc",
        "cloudEvents_specversion": "1.0",
        "cloudEvents_id": "m7",
        "cloudEvents_source": "/test",
        "cloudEvents_type": "t.7",
        "cloudEvents_time": "2026-01-02T03:04:05+00:00",
        "cloudEvents_sequence": "00000000000000000007",
        "cloudEvents_subject": "k",
    }


def test_confirms_out_of_order_settle_the_right_messages(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3, 4, 5))
    first, _, third, _, fifth = arrived(broker, 5)
    for message in (fifth, third, first):
        message.ack()
    first.line.close()
    again = arrived(broker, 2, after=5)
    assert numbers(again) == [2, 4]
    assert not delivering.done()
    for message in reversed(again):
        message.ack()
    assert delivering.result(DEADLINE) == {}
    assert len(broker.messages) == 7


def test_one_ack_for_many_settles_them_and_no_later_one(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3, 4, 5))
    messages = arrived(broker, 5)
    messages[0].ack()
    messages[2].ack(multiple=True)
    messages[0].line.close()
    again = arrived(broker, 2, after=5)
    assert numbers(again) == [4, 5]
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert len(broker.messages) == 7


def test_one_nack_for_many_sends_them_again_and_no_later_one(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3, 4, 5))
    messages = arrived(broker, 5)
    messages[1].ack()
    messages[3].nack(multiple=True)
    again = arrived(broker, 3, after=5)
    assert sorted(numbers(again)) == [1, 3, 4]
    assert not delivering.done(), "the fifth has no answer yet"
    messages[4].ack()
    again[2].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert same_ids(broker.messages)


def test_a_refused_message_comes_again_later_and_later_under_its_own_id(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.04, max=0.1))
    came: list[float] = []

    def refuse(message: Message) -> None:
        came.append(time.monotonic())
        message.nack()

    with ScriptedBroker(refuse, refuse, refuse, refuse, confirm) as broker:
        assert start(broker).deliver(some(1)).result(DEADLINE) == {}
    came.append(time.monotonic())
    waited = [later - earlier for earlier, later in pairwise(came)]
    assert all(wait >= least for wait, least in zip(waited, (0.04, 0.08, 0.1, 0.1), strict=True)), waited
    assert numbers(broker.messages) == [1] * 5
    assert same_ids(broker.messages)


def test_what_is_refused_eight_times_is_parked_and_the_others_go_on(start: Start) -> None:
    def refuse_second(message: Message) -> None:
        (message.nack if message.body == b"2" else message.ack)()

    with ScriptedBroker(refuse_second) as broker:
        parked = start(broker).deliver(some(1, 2, 3)).result(DEADLINE)
    assert reasons(parked) == {2: "the broker refused it 8 times"}
    assert Counter(numbers(broker.messages)) == {1: 1, 2: 8, 3: 1}


def test_a_confirm_of_no_message_under_way_is_harmless(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3))
    first, *_ = arrived(broker, 3)
    first.ack()
    first.ack()
    first.nack()
    for tag in (0, 4, 99):
        first.send(spec.Basic.Ack(tag))
        first.send(spec.Basic.Nack(tag))
    first.send(spec.Basic.Ack(0, multiple=True))
    first.send(spec.Basic.Nack(1, multiple=True))
    first.line.close()
    again = arrived(broker, 2, after=3)
    assert numbers(again) == [2, 3]
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def test_confirms_of_a_cancelled_delivery_are_not_those_of_the_next(broker: ScriptedBroker, sender: Sender) -> None:
    cancelled = sender.deliver(some(1, 2))
    earlier = arrived(broker, 2)
    cancelled.cancel()
    delivering = sender.deliver(some(3, 4))
    later = arrived(broker, 2, after=2)
    earlier[1].ack(multiple=True)
    later[0].ack()
    later[0].line.close()
    (fourth,) = arrived(broker, 1, after=4)
    assert numbers([fourth]) == [4]
    fourth.ack()
    assert delivering.result(DEADLINE) == {}


def test_a_cancelled_delivery_sends_nothing_more(
    broker: ScriptedBroker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "UNCONFIRMED", 2)
    cancelled = sender.deliver(some(1, 2, 3, 4))
    messages = arrived(broker, 2)
    cancelled.cancel()
    wait_for(sender.idle)
    messages[1].ack(multiple=True)
    round_trip(broker, messages[0].line)
    assert numbers(broker.messages) == [1, 2]


# Channels and connections that end.


def test_tags_start_again_on_a_reopened_channel_and_what_was_under_way_goes_first(
    broker: ScriptedBroker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "UNCONFIRMED", 4)
    delivering = sender.deliver(some(1, 2, 3, 4, 5, 6))
    messages = arrived(broker, 4)
    messages[1].ack()
    arrived(broker, 1, after=4)
    messages[0].close_channel(404, "NOT_FOUND")
    again = arrived(broker, 4, after=5)
    assert [(message.line.number, message.tag) for message in again] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert numbers(again) == [1, 3, 4, 5]
    again[1].ack()
    (sixth,) = arrived(broker, 1, after=9)
    assert (numbers([sixth]), sixth.tag) == ([6], 5)
    messages[0].close_channel(404, "NOT_FOUND")
    last = arrived(broker, 4, after=10)
    assert numbers(last) == [1, 4, 5, 6], "tag 2 of the new channel was 3, not 2"
    last[3].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert same_ids(broker.messages)


def test_a_late_confirm_of_a_closed_channel_settles_nothing(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3))
    first, _, third = arrived(broker, 3)
    first.line.closing.add(1)
    first.line.send(
        frame.Method(1, spec.Channel.Close(404, "NOT_FOUND", 0, 0)), frame.Method(1, spec.Basic.Ack(3, multiple=True))
    )
    again = arrived(broker, 3, after=3)
    assert numbers(again) == [1, 2, 3]
    again[0].ack()
    again[1].ack()
    again[2].close_channel(404, "NOT_FOUND")
    (alone,) = arrived(broker, 1, after=6)
    third.ack()
    alone.line.close()
    (last,) = arrived(broker, 1, after=7)
    assert numbers([alone, last]) == [3, 3], "tag 3 was the old channel's"
    last.ack()
    assert delivering.result(DEADLINE) == {}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "end",
    [
        lambda line: line.close_channel(1, 403, "ACCESS_REFUSED"),
        lambda line: line.close_channel(1, 404, "NOT_FOUND"),
        lambda line: line.close_channel(1, 405, "RESOURCE_LOCKED"),
        lambda line: line.close_channel(1, 506, "RESOURCE_ERROR"),
        lambda line: line.close(320, "CONNECTION_FORCED"),
        lambda line: line.close(541, "INTERNAL_ERROR"),
        lambda line: line.write(NO_FRAME),
        lambda line: line.drop(),
    ],
    ids=["403", "404", "405", "506", "320", "541", "gibberish", "drop"],
)
def test_an_end_that_says_nothing_of_a_message_parks_none(
    broker: ScriptedBroker, sender: Sender, count: int, end: Callable[[Line], None]
) -> None:
    messages = some(*range(1, count + 1))
    delivering = sender.deliver(messages)
    for attempt in range(3):
        end(arrived(broker, count, after=attempt * count)[0].line)
    again = arrived(broker, count, after=3 * count)
    again[-1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert numbers(broker.messages) == [message.id for message in messages] * 4
    assert same_ids(broker.messages)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda line: line.close_channel(1, 406, "PRECONDITION_FAILED - too large"), "406 PRECONDITION_FAILED"),
        (lambda line: line.close_channel(1, 311, "CONTENT_TOO_LARGE"), "311 CONTENT_TOO_LARGE"),
        (lambda line: line.close(501, "FRAME_ERROR - too large"), "501 FRAME_ERROR"),
        (lambda line: line.close(502, "SYNTAX_ERROR"), "502 SYNTAX_ERROR"),
    ],
    ids=["406", "311", "501", "502"],
)
def test_a_message_that_the_broker_closes_over_is_found_and_parked_alone(
    start: Start, end: Callable[[Line], None], told: str, strict: bool
) -> None:
    closed = []

    def close_over_third(message: Message) -> None:
        if message.body == b"3":
            closed.append(message)
            end(message.line)
        elif closed:
            message.ack()

    with ScriptedBroker(close_over_third) as broker:
        sender = start(broker, strict=strict)
        parked = sender.deliver([outgoing(number, f"k{number}") for number in range(1, 7)]).result(DEADLINE)
    assert list(parked) == [3]
    assert told in parked[3].reason
    assert len(closed) == 2, "the second time it was alone, and no third is needed"
    assert {1, 2, 4, 5, 6} <= set(numbers(broker.messages))
    assert sender.troubles[-1] is None


def test_messages_under_suspicion_go_one_by_one_and_the_others_together_again(
    broker: ScriptedBroker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "UNCONFIRMED", 4)
    delivering = sender.deliver(some(1, 2, 3, 4, 5, 6, 7))
    arrived(broker, 4)[1].close_channel(406)
    (first,) = arrived(broker, 1, after=4)
    round_trip(broker, first.line)
    assert numbers(broker.messages[4:5]) == [1], "an end without blame clears nobody"
    for number in (1, 2, 3, 4):
        (alone,) = arrived(broker, 1, after=4 + number)
        assert numbers(broker.messages[4 + number :]) == [number]
        alone.ack()
    rest = arrived(broker, 3, after=9)
    assert numbers(rest) == [5, 6, 7]
    rest[2].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def test_suspicion_ends_with_a_cancelled_delivery(broker: ScriptedBroker, sender: Sender) -> None:
    cancelled = sender.deliver(some(1, 2))
    arrived(broker, 2)[0].close_channel(406)
    arrived(broker, 1, after=2)
    cancelled.cancel()
    sender.deliver(some(3, 4))
    assert numbers(arrived(broker, 2, after=3)) == [3, 4]


def test_a_lost_connection_repeats_what_was_unconfirmed_in_order_and_nothing_else(
    broker: ScriptedBroker, sender: Sender
) -> None:
    delivering = sender.deliver(some(*range(1, 101)))
    messages = arrived(broker, 100)
    for message in messages[::2]:
        message.ack()
    messages[0].line.drop()
    again = arrived(broker, 50, after=100)
    assert numbers(again) == list(range(2, 101, 2))
    again[-1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert len(broker.messages) == 150
    assert same_ids(broker.messages)


def test_a_confirm_that_is_cut_in_two_is_none(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2))
    first, _ = arrived(broker, 2)
    first.line.write(frame.Method(1, spec.Basic.Ack(2, True)).marshal()[:12])
    first.line.drop()
    again = arrived(broker, 2, after=2)
    assert numbers(again) == [1, 2]
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def test_a_message_that_was_cut_in_two_comes_whole(broker: ScriptedBroker, sender: Sender) -> None:
    broker.instead[spec.Basic.Publish] = lambda line, _: line.drop()
    body = json.dumps("x" * 3_000_000)
    delivering = sender.deliver([outgoing(1, payload=body)])
    wait_for(lambda: broker.count(spec.Basic.Publish) == 2)
    broker.instead.clear()
    (message,) = arrived(broker, 1)
    assert message.body == body.encode()
    message.ack()
    assert delivering.result(DEADLINE) == {}


STEPS = [
    frame.ProtocolHeader,
    spec.Connection.StartOk,
    spec.Connection.Open,
    spec.Channel.Open,
    spec.Exchange.Declare,
    spec.Confirm.Select,
]
ENDS: dict[str, Callable[[Line, int], None]] = {
    "silence": lambda line, channel: None,
    "drop": lambda line, channel: line.drop(),
    "refusal": lambda line, channel: (
        line.close_channel(channel, 403, "REFUSED") if channel else line.close(403, "REFUSED")
    ),
    "gibberish": lambda line, channel: line.write(NO_FRAME),
}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str(step.__qualname__))
@pytest.mark.parametrize("end", ENDS)
def test_a_broker_that_fails_while_a_channel_is_opened_is_tried_until_it_answers(
    start: Start, monkeypatch: pytest.MonkeyPatch, step: type, end: str
) -> None:
    be_patient(monkeypatch, 0.1 if end == "silence" else DEADLINE)
    with ScriptedBroker(confirm) as broker:
        broker.instead[step] = ENDS[end]
        sender = start(broker, exchange="x")
        delivering = sender.deliver(some(1, 2, 3))
        wait_for(lambda: len(broker.lines) >= 3, what="it tries again")
        assert sender.troubles
        assert None not in sender.troubles
        if end == "silence":
            assert set(sender.troubles) == {f"127.0.0.1:{broker.port}: the broker does not answer"}
        broker.instead.clear()
        give_time(monkeypatch, sender)
        assert delivering.result(DEADLINE) == {}
        assert numbers(broker.messages) == [1, 2, 3]
        assert sender.troubles[-1] is None
        for line in broker.lines[:-1]:
            wait_for(lambda line=line: not line.thread.is_alive(), what="no connection is left behind")


@contextmanager
def without_collection() -> Iterator[None]:
    """Let Python's collector not end what was forgotten."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("step", STEPS[:3], ids=lambda step: str(step.__qualname__))
def test_a_connection_that_is_given_up_while_it_opens_is_closed(step: type) -> None:
    """By us, as the program may go on with another event loop: nobody ends what a closed loop left half open."""

    async def give_up(broker: ScriptedBroker) -> None:
        parameters = connection.parameters(broker.url)
        opening = asyncio.create_task(connection.open_connection(parameters, lambda _: None))
        await asyncio.to_thread(wait_for, lambda: broker.count(step) or (step is frame.ProtocolHeader and broker.lines))
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    with without_collection(), ScriptedBroker(confirm) as broker:
        broker.instead[step] = ENDS["silence"]
        asyncio.run(give_up(broker))
        wait_for(lambda: not broker.lines[0].thread.is_alive(), what="the broker sees its end")


def test_a_connection_whose_closing_is_given_up_is_closed() -> None:
    async def give_up(broker: ScriptedBroker) -> None:
        opened = await connection.open_connection(connection.parameters(broker.url), lambda _: None)
        closing = asyncio.create_task(connection.close(opened))
        await asyncio.to_thread(wait_for, lambda: broker.count(spec.Connection.Close))
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    with without_collection(), ScriptedBroker(confirm) as broker:
        broker.instead[spec.Connection.Close] = ENDS["silence"]
        asyncio.run(give_up(broker))
        wait_for(lambda: not broker.lines[0].thread.is_alive(), what="the broker sees its end")


def test_a_channel_that_is_closed_as_it_opens_is_replaced(broker: ScriptedBroker, sender: Sender) -> None:
    def close_at_once(line: Line, channel: int) -> None:
        broker.instead.clear()
        line.closing.add(channel)
        line.send(
            frame.Method(channel, spec.Confirm.SelectOk()),
            frame.Method(channel, spec.Channel.Close(404, "NOT_FOUND", 0, 0)),
        )

    broker.instead[spec.Confirm.Select] = close_at_once
    delivering = sender.deliver(some(1))
    arrived(broker, 1)[0].ack()
    assert delivering.result(DEADLINE) == {}
    assert broker.count(spec.Channel.Open) == 2


def test_a_refused_login_is_told_without_the_password(start: Start, broker: ScriptedBroker) -> None:
    broker.instead[spec.Connection.StartOk] = lambda line, _: line.close(403, "ACCESS_REFUSED - Login was refused")
    sender = start(broker, url=f"amqp://me:canary-s3cret@127.0.0.1:{broker.port}/%2F")
    sender.deliver(some(1))
    wait_for(lambda: sender.troubles)
    assert "ACCESS_REFUSED" in str(sender.troubles[0])
    assert "canary" not in str(sender.troubles)


def test_a_broker_that_refuses_whatever_is_sent_is_tried_less_and_less_often(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.04)
    monkeypatch.setattr(connection, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)  # nothing is taken off at random
    came: list[float] = []

    def refuse(message: Message) -> None:
        came.append(time.monotonic())
        message.close_channel(403, "ACCESS_REFUSED")

    with ScriptedBroker(refuse, refuse, refuse, refuse, confirm) as broker:
        sender = start(broker)
        assert sender.deliver(some(1)).result(DEADLINE) == {}
    waited = [later - earlier for earlier, later in pairwise(came)]
    assert all(wait >= least for wait, least in zip(waited, (0.04, 0.08, 0.1), strict=True)), waited
    refused = f"127.0.0.1:{broker.port}: 403 ACCESS_REFUSED"
    assert sender.troubles == [refused, None], "that a channel opens doesn't mean that it is over"


# Returns.


def missing(message: Message) -> None:
    """A script: no queue takes the message."""
    message.return_()
    message.ack()


def ones(*ids: int, **other: Any) -> list[Outgoing]:
    """Messages of one topic."""
    return [outgoing(number, topic="t", **other) for number in ids]


@pytest.mark.parametrize("options", [{}, {"exchange": "x", "declare": "topic"}, {"strict": True}])
def test_of_a_routing_key_that_no_queue_took_one_message_is_tried_for_all(start: Start, options: Any) -> None:
    with ScriptedBroker(missing, missing, confirm) as broker:
        sender = start(broker, **options)
        assert list(sender.deliver(ones(1)).result(DEADLINE)) == [1]
        parked = sender.deliver([*ones(2, 3, 4), outgoing(5)]).result(DEADLINE)
        assert numbers(broker.messages) == [1, 2, 5]
        assert len({(unsent.reason, unsent.routing_key, unsent.waits) for unsent in parked.values()}) == 1
        assert [parked[number].message.id for number in sorted(parked)] == [2, 3, 4]
        assert sender.deliver(ones(6, 7, 8)).result(DEADLINE) == {}, "it has a queue now, and so have the others"
    assert numbers(broker.messages) == [1, 2, 5, 6, 7, 8]


def test_where_more_than_the_routing_key_matters_each_message_is_tried(start: Start) -> None:
    with ScriptedBroker(missing, missing, confirm) as broker:
        sender = start(broker, exchange="x", declare="headers")
        sender.deliver(ones(1)).result(DEADLINE)
        assert list(sender.deliver(ones(2, 3)).result(DEADLINE)) == [2]
    assert numbers(broker.messages) == [1, 2, 3]


def test_a_routing_key_that_is_refused_to_the_last_is_tried_with_one_message_until_it_is_taken(start: Start) -> None:
    """As by a cluster without its majority: it takes all again when that is back."""
    with ScriptedBroker(*[Message.nack] * 9, confirm) as broker:
        sender = start(broker)
        (first,) = sender.deliver(ones(1)).result(DEADLINE).values()
        assert (first.reason, first.routing_key) == ("the broker refused it 8 times", "t")
        parked = sender.deliver(ones(2, 3, 4)).result(DEADLINE)
        assert sorted(parked) == [2, 3, 4]
        assert all(unsent.waits and unsent.waits > 3000 for unsent in [first, *parked.values()])
        assert sender.deliver(ones(2, 3, 4)).result(DEADLINE) == {}
    assert numbers(broker.messages) == [1] * 8 + [2, 2, 3, 4]


def test_what_waits_for_one_that_cannot_be_sent_is_on_its_own(start: Start) -> None:
    with ScriptedBroker(missing, confirm) as broker:
        sender = start(broker)
        sender.deliver(ones(1)).result(DEADLINE)
        parked = sender.deliver([*ones(2, headers="[]"), *ones(3, 4)]).result(DEADLINE)
        assert list(parked) == [2]
    assert numbers(broker.messages) == [1, 3, 4]


def test_what_waits_for_one_whose_connection_is_lost_waits_for_its_second_attempt(start: Start) -> None:
    def cut(message: Message) -> None:
        message.line.drop()

    with ScriptedBroker(missing, cut, missing, confirm) as broker:
        sender = start(broker)
        sender.deliver(ones(1)).result(DEADLINE)
        assert sorted(sender.deliver(ones(2, 3, 4)).result(DEADLINE)) == [2, 3, 4]
    assert numbers(broker.messages) == [1, 2, 2]


def test_in_strict_mode_what_is_behind_one_that_follows_another_waits_behind_it(start: Start) -> None:
    with ScriptedBroker(missing, missing, confirm) as broker:
        sender = start(broker, strict=True)
        sender.deliver(ones(1)).result(DEADLINE)
        messages = [*ones(2, key="a"), *ones(3, key="b"), outgoing(4, "b"), outgoing(5, "c")]
        parked = sender.deliver(messages).result(DEADLINE)
    assert sorted(parked) == [2, 3, 4]
    assert (parked[3].routing_key, parked[4].routing_key) == ("t", None)
    assert all(unsent.waits for unsent in parked.values()), "all of them wait"
    assert numbers(broker.messages) == [1, 2, 5]


def test_a_message_that_is_returned_before_its_confirm_is_parked_as_unroutable(
    broker: ScriptedBroker, sender: Sender
) -> None:
    delivering = sender.deliver(some(1, 2, 3, 4))
    _, second, third, fourth = arrived(broker, 4)
    second.return_()
    fourth.return_(313, "NO_CONSUMERS")
    third.ack(multiple=True)
    fourth.nack()
    assert reasons(delivering.result(DEADLINE)) == {
        2: "unroutable: 312 NO_ROUTE (routing key 't.2')",
        4: "unroutable: 313 NO_CONSUMERS (routing key 't.4')",
    }
    assert len(broker.messages) == 4


def test_a_return_after_its_confirm_changes_nothing(broker: ScriptedBroker, sender: Sender) -> None:
    """The order of a real broker is return, then confirm: a confirmed message has been routed, and stays delivered."""
    delivering = sender.deliver(some(1, 2))
    first, second = arrived(broker, 2)
    first.ack()
    first.return_()
    second.ack()
    assert delivering.result(DEADLINE) == {}
    delivering = sender.deliver(some(1, 3))
    arrived(broker, 2, after=2)
    second.return_()
    first.return_()
    broker.messages[3].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}, "nor does it for a message of the same id that is sent again"


def test_a_return_of_an_attempt_on_an_earlier_channel_parks_nothing(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2))
    first, second = arrived(broker, 2)
    second.return_()
    first.close_channel(404, "NOT_FOUND")
    again = arrived(broker, 2, after=2)
    first.return_()
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}, "what counts is what the broker says of the attempt that it confirms"


def test_a_return_of_an_attempt_that_was_refused_parks_nothing(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1))
    (first,) = arrived(broker, 1)
    first.nack()
    (second,) = arrived(broker, 1, after=1)
    first.return_()
    second.ack()
    assert delivering.result(DEADLINE) == {}


def test_a_return_of_somebody_elses_message_is_harmless(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1))
    (message,) = arrived(broker, 1)
    for properties in (spec.BasicProperties(), spec.BasicProperties(message_id="m1"), spec.BasicProperties(headers={})):
        replace(message, properties=properties).return_()
    message.ack()
    assert delivering.result(DEADLINE) == {}


# When it may not send.


def test_a_blocked_connection_carries_nothing_until_it_is_unblocked(broker: ScriptedBroker, sender: Sender) -> None:
    first = sender.deliver(some(1))
    (message,) = arrived(broker, 1)
    message.line.block("low on disk")
    wait_for(lambda: sender.troubles)
    message.ack()
    assert first.result(DEADLINE) == {}
    delivering = sender.deliver(some(2, 3))
    for channels in (2, 3):
        round_trip(broker, message.line)
        # The end of the channel, and, when there is another one, the block again: that is the last word until it ends.
        wait_for(lambda channels=channels: len(sender.troubles) == 2 * channels - 1, what=str(sender.troubles))
        assert broker.count(spec.Confirm.Select) == channels
    assert len(broker.messages) == 1, "nor does it on another channel of the connection"
    blocked, closed = "the broker blocks publishers: low on disk", f"127.0.0.1:{broker.port}: 404 ROUND_TRIP"
    assert sender.troubles == [blocked, closed, blocked, closed, blocked]
    message.line.unblock()
    again = arrived(broker, 2, after=1)
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}
    assert sender.troubles[-1] is None


def test_a_connection_that_is_blocked_as_it_opens_carries_nothing(broker: ScriptedBroker, sender: Sender) -> None:
    broker.instead[spec.Connection.Open] = lambda line, _: line.send(
        frame.Method(0, spec.Connection.OpenOk()), frame.Method(0, spec.Connection.Blocked("low on memory"))
    )
    delivering = sender.deliver(some(1))
    wait_for(lambda: sender.troubles)
    wait_for(lambda: broker.count(spec.Confirm.Select) == 1)
    round_trip(broker, broker.lines[0])
    assert broker.messages == []
    broker.lines[0].unblock()
    arrived(broker, 1)[0].ack()
    assert delivering.result(DEADLINE) == {}
    assert sender.troubles[-1] is None


def test_a_connection_that_is_lost_while_blocked_is_replaced(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1))
    (message,) = arrived(broker, 1)
    message.line.block()
    wait_for(lambda: sender.troubles)
    message.line.drop()
    arrived(broker, 1, after=1)[0].ack()
    assert delivering.result(DEADLINE) == {}
    assert sender.troubles[-1] is None


def test_nothing_is_sent_while_it_may_not(start: Start) -> None:
    asked = []
    allowed = threading.Event()

    def is_held() -> bool:
        asked.append(allowed.is_set())
        return allowed.is_set()

    with ScriptedBroker(confirm) as broker:
        delivering = start(broker, is_held=is_held).deliver(some(1, 2, 3))
        wait_for(lambda: len(asked) >= 2)
        assert broker.count(spec.Basic.Publish) == 0
        allowed.set()
        assert delivering.result(DEADLINE) == {}
    assert numbers(broker.messages) == [1, 2, 3]


def test_no_more_than_the_window_is_unconfirmed(
    broker: ScriptedBroker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "UNCONFIRMED", 3)
    delivering = sender.deliver(some(*range(1, 9)))
    second = arrived(broker, 3)[1]
    second.ack()
    arrived(broker, 1, after=3)
    round_trip(broker, second.line)
    assert numbers(broker.messages[:4]) == [1, 2, 3, 4]
    again = arrived(broker, 3, after=4)
    assert numbers(again) == [1, 3, 4]
    for message in again:
        message.ack()
    rest = arrived(broker, 3, after=7)
    round_trip(broker, second.line)
    assert numbers(broker.messages[7:10]) == [5, 6, 7]
    for message in arrived(broker, 3, after=10):
        message.ack()
    arrived(broker, 1, after=13)[0].ack()
    assert delivering.result(DEADLINE) == {}
    assert len(rest) == 3


# Whatever the broker does.


class Whims:
    """A script that answers at random, from a seed, and notes where a promise is broken as a message arrives."""

    def __init__(self, seed: int, *, strict: bool, faults: bool) -> None:
        self.random = Random(seed)
        self.strict = strict
        self.acked: list[int] = []
        self.refused: Counter[int] = Counter()
        self.broken: list[str] = []
        self._held: list[Message] = []
        self._lock = threading.Lock()
        self._choices = [self.ack, self.ack_many, self.nack, self.nack_many]
        self._weights = [40, 15, 8, 4]
        if faults:
            self._choices += [self.close_channel, self.drop]
            self._weights += [3, 3]

    def __call__(self, message: Message) -> None:
        with self._lock:
            key = message.properties.headers.get("cloudEvents_subject")
            same = [held for held in self._held if held.properties.headers.get("cloudEvents_subject") == key]
            if self.strict and key and same:
                self.broken.append(f"{numbers(same)} are unconfirmed as {message.body!r} arrives")
            self._held.append(message)
            if len(self._held) > batch.UNCONFIRMED:
                self.broken.append(f"{len(self._held)} are unconfirmed")
            if self.random.random() < 0.6:
                self._act()

    def go_on(self) -> None:
        """Answer one that is still held: the client may have nothing more to send before that."""
        with self._lock, suppress(OSError):
            if self._held:
                self.ack(self.random.choice(self._held))

    def _act(self) -> None:
        (choice,) = self.random.choices(self._choices, self._weights)
        choice(self.random.choice(self._held))

    def _take(self, message: Message, many: bool = False) -> list[int]:
        taken = [held for held in self._held if held is message or (many and held.tag < message.tag)]
        self._held = [held for held in self._held if held not in taken]
        return numbers(taken)

    def ack(self, message: Message) -> None:
        self.acked += self._take(message)
        message.ack()

    def ack_many(self, message: Message) -> None:
        self.acked += self._take(message, many=True)
        message.ack(multiple=True)

    def nack(self, message: Message) -> None:
        self.refused.update(self._take(message))
        message.nack()

    def nack_many(self, message: Message) -> None:
        self.refused.update(self._take(message, many=True))
        message.nack(multiple=True)

    def close_channel(self, message: Message) -> None:
        self._held.clear()
        message.close_channel(404, "NOT_FOUND")

    def drop(self, message: Message) -> None:
        self._held.clear()
        message.line.drop()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("faults", [False, True], ids=["answers", "faults"])
@pytest.mark.parametrize("strict", [False, True], ids=["pipelined", "strict"])
def test_whatever_the_broker_answers_each_message_is_delivered_or_parked(
    start: Start, monkeypatch: pytest.MonkeyPatch, seed: int, faults: bool, strict: bool
) -> None:
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(connection, "LONGEST_WAIT", 0.002)
    monkeypatch.setattr(batch, "REFUSED", replace(batch.REFUSED, first=0.001, max=0.002))
    monkeypatch.setattr(batch, "UNCONFIRMED", 7)
    keys = ["a", "b", "c", None]
    whims = Whims(seed, strict=strict, faults=faults)
    messages = [outgoing(number, whims.random.choice(keys)) for number in range(1, 81)]
    with ScriptedBroker(whims) as broker:
        delivering = start(broker, strict=strict).deliver(messages)

        def done() -> bool:
            whims.go_on()
            return delivering.done()

        wait_for(done)
    parked = delivering.result()
    assert whims.broken == []
    assert {message.id for message in messages} - set(parked) <= set(whims.acked), "delivered is what was confirmed"
    for number, reason in reasons(parked).items():
        assert reason.startswith("behind") if whims.refused[number] < 8 else "8 times" in reason
    if not faults:
        assert sorted(whims.acked) == sorted({message.id for message in messages} - set(parked))
    if strict:
        for key in filter(None, keys):
            mine = [number for number in dict.fromkeys(whims.acked) if messages[number - 1].key == key]
            assert mine == sorted(mine), f"the order of {key}"
    assert same_ids(broker.messages)


# Strict mode.


def test_in_strict_mode_the_next_one_of_a_key_waits_for_the_confirm(start: Start, broker: ScriptedBroker) -> None:
    messages = [outgoing(1, "a"), outgoing(2, "a"), outgoing(3, "b"), outgoing(4), outgoing(5), outgoing(6, "a")]
    delivering = start(broker, strict=True).deliver(messages)
    first, *others = arrived(broker, 4)
    assert numbers(others) == [3, 4, 5], "those without a key wait for nobody"
    round_trip(broker, first.line)
    assert numbers(arrived(broker, 4, after=4)) == [1, 3, 4, 5]
    broker.messages[4].nack()
    (refused,) = arrived(broker, 1, after=8)
    assert numbers([refused]) == [1]
    refused.ack()
    (second,) = arrived(broker, 1, after=9)
    assert numbers([second]) == [2]
    second.line.drop()
    again = arrived(broker, 4, after=10)
    assert numbers(again) == [2, 3, 4, 5]
    again[0].ack()
    (sixth,) = arrived(broker, 1, after=14)
    assert numbers([sixth]) == [6]
    sixth.ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def return_it(message: Message) -> None:
    message.return_()
    message.ack()


@pytest.mark.parametrize(
    ("stop", "why"),
    [(return_it, "unroutable"), (Message.nack, "refused"), (Message.close_channel, "406")],
    ids=["returned", "refused", "closed over"],
)
def test_in_strict_mode_a_parked_message_stops_its_key_and_no_other(
    start: Start, stop: Callable[[Message], None], why: str
) -> None:
    def stop_first(message: Message) -> None:
        (stop if message.body == b"1" else Message.ack)(message)

    messages = [outgoing(1, "a"), outgoing(2, "a"), outgoing(3, "b"), outgoing(4), outgoing(5, "a"), outgoing(6, "b")]
    with ScriptedBroker(stop_first) as broker:
        parked = start(broker, strict=True).deliver(messages).result(DEADLINE)
    assert sorted(parked) == [1, 2, 5]
    assert why in parked[1].reason
    assert parked[2].reason == parked[5].reason == "behind an earlier parked message of its key 'a'"
    assert set(numbers(broker.messages)) == {1, 3, 4, 6}


def test_in_strict_mode_what_cannot_be_encoded_stops_its_key_too(start: Start) -> None:
    messages = [outgoing(1, "a"), outgoing(2, "a", headers="[]"), outgoing(3, "a"), outgoing(4, "b")]
    with ScriptedBroker(confirm) as broker:
        parked = start(broker, strict=True).deliver(messages).result(DEADLINE)
    assert reasons(parked) == {
        2: "AMQP can't carry it: its headers are not an object",
        3: "behind an earlier parked message of its key 'a'",
    }
    assert sorted(numbers(broker.messages)) == [1, 4]


def test_in_strict_mode_a_key_that_was_stopped_before_stays_so(start: Start) -> None:
    with ScriptedBroker(confirm) as broker:
        sender = start(broker, strict=True)
        stopped = {"a", "z"}
        messages = [outgoing(1, "a"), outgoing(2, "b"), outgoing(3, "a"), outgoing(4)]
        assert sorted(sender.deliver(messages, stopped).result(DEADLINE)) == [1, 3]
        assert sender.deliver(some(5, 6, key="a")).result(DEADLINE) == {}, (
            "and free again when its parked ones are gone"
        )
    assert numbers(broker.messages) == [2, 4, 5, 6]


def test_without_strict_mode_a_parked_message_stops_nothing(start: Start) -> None:
    with ScriptedBroker(return_it, confirm) as broker:
        assert list(start(broker).deliver(some(1, 2, 3, key="a"), {"a"}).result(DEADLINE)) == [1]
    assert numbers(broker.messages) == [1, 2, 3]


# What AMQP can carry.


def nested(depth: int) -> str:
    return '{"deep": ' + '{"a":' * depth + "1" + "}" * depth + "}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topic": "x" * 256}, "routing key has more than 255 bytes"),
        ({"topic": "ü" * 128}, "routing key has more than 255 bytes"),
        ({"headers": '{"fine": 1, "ratio": 0.5}'}, "the header 'ratio': 0.5"),
        ({"headers": '{"outer": {"inner": [1, {"deep": 0.25}]}}'}, "the header 'outer': 0.25"),
        ({"headers": '{"huge": 9223372036854775808}'}, "the header 'huge'"),
        ({"headers": '{"huge": -9223372036854775809}'}, "the header 'huge'"),
        ({"headers": json.dumps({"n" * 256: 1})}, "the header 'nnn"),
        ({"headers": json.dumps({"outer": {"n" * 256: 1}})}, "the header 'outer'"),
        ({"headers": '{"nan": NaN}'}, "the header 'nan'"),
        ({"headers": nested(500)}, "the header 'deep'"),
        ({"headers": nested(100_000)}, "its headers can't be read"),
        ({"headers": "[1, 2]"}, "its headers are not an object"),
        ({"headers": '"text"'}, "its headers are not an object"),
        ({"headers": "null"}, "its headers are not an object"),
        ({"headers": "{"}, "its headers can't be read"),
        ({"headers": json.dumps({"long": "x" * 200_000})}, "its headers are larger than the 131072 bytes"),
        ({"key": "k" * 200_000}, "its headers are larger than the 131072 bytes"),
        ({"payload": '"\ud800"'}, "surrogates not allowed"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_amqp_cannot_carry_is_parked_and_says_what_it_is(
    start: Start, changes: dict[str, Any], words: str
) -> None:
    with ScriptedBroker(confirm) as broker:
        parked = start(broker).deliver([outgoing(1), outgoing(2, **changes), outgoing(3)]).result(DEADLINE)
        assert broker.count(spec.Channel.Open) == 1
    assert list(parked) == [2]
    reason = parked[2].reason
    assert words in reason
    assert len(reason) < 700
    assert numbers(broker.messages) == [1, 3]


def test_many_that_cannot_go_end_a_delivery_too(start: Start) -> None:
    with ScriptedBroker(confirm) as broker:
        parked = start(broker).deliver([outgoing(number, headers="[]") for number in range(3000)]).result(DEADLINE)
    assert len(parked) == 3000
    assert broker.messages == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"a": None, "b": True, "c": -1, "d": 2**63 - 1, "e": -(2**63), "f": "", "g": "ß\n\0", "": "no name"},
        {"n" * 255: 1},
        {"nested": {"list": [1, "two", None, [], {}, {"three": [3]}], "empty": {}}},
        {"long": "x" * 100_000},
    ],
    ids=["none", "simple", "long name", "nested", "long"],
)
def test_headers_arrive_as_they_are(start: Start, headers: dict[str, Any]) -> None:
    with ScriptedBroker(confirm) as broker:
        assert start(broker).deliver([outgoing(1, headers=json.dumps(headers))]).result(DEADLINE) == {}
    (message,) = broker.messages
    found = {name: value for name, value in message.properties.headers.items() if not name.startswith("cloudEvents_")}
    assert found == headers


def test_no_header_of_the_user_passes_for_one_of_ours(start: Start) -> None:
    forged = dict.fromkeys(
        ["cloudEvents_id", "cloudEvents:id", "CLOUDEVENTS_ID", "cloudevents:Id", "CloudEvents_subject"], "forged"
    )
    with ScriptedBroker(confirm) as broker:
        sender = start(broker)
        assert (
            sender.deliver([outgoing(1, headers=json.dumps({**forged, "cloudEvents": "mine"}))]).result(DEADLINE) == {}
        )
    headers = broker.messages[0].properties.headers
    assert "forged" not in headers.values()
    assert (headers["cloudEvents_id"], headers["cloudEvents"]) == ("m1", "mine")


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (None, b"null"),
        ("null", b"null"),
        ('""', b'""'),
        ('"\\u0000"', b'"\\u0000"'),
        ('"ß€😀"', '"ß€😀"'.encode()),
        (json.dumps("x" * 2**20), json.dumps("x" * 2**20).encode()),
        # One byte below, at and above what one frame carries.
        *((json.dumps("x" * size), json.dumps("x" * size).encode()) for size in (131_061, 131_062, 131_063)),
    ],
    ids=["none", "null", "empty", "NUL", "unicode", "1 MB", "below", "at", "above"],
)
def test_payloads_arrive_whole(start: Start, payload: str | None, body: bytes) -> None:
    with ScriptedBroker(confirm) as broker:
        assert start(broker).deliver([outgoing(1, payload=payload), outgoing(2)]).result(DEADLINE) == {}
    assert [message.body for message in broker.messages] == [body, b"2"]


# The end, and the start.


@pytest.mark.parametrize("step", [spec.Channel.Close, spec.Connection.Close], ids=lambda step: str(step.__qualname__))
def test_closing_does_not_wait_for_a_broker_that_does_not_answer(
    broker: ScriptedBroker, sender: Sender, monkeypatch: pytest.MonkeyPatch, step: type
) -> None:
    delivering = sender.deliver(some(1))
    (message,) = arrived(broker, 1)
    broker.instead[step] = lambda line, channel: None
    delivering.cancel()
    wait_for(sender.idle)
    waits: list[float] = []
    wait = asyncio.wait_for

    def noted(awaitable: Any, seconds: float) -> Any:
        waits.append(seconds)
        return wait(awaitable, seconds)

    monkeypatch.setattr(asyncio, "wait_for", noted)
    sender.close()
    assert waits, "it has asked for some time"
    assert sum(waits) < 2.5
    wait_for(lambda: not message.line.thread.is_alive(), what="the connection is cut")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: str(step.__qualname__))
def test_closing_while_a_channel_is_opened_leaves_no_connection_behind(
    start: Start, monkeypatch: pytest.MonkeyPatch, step: type
) -> None:
    be_patient(monkeypatch, 0.5)
    with ScriptedBroker() as broker:
        reached = threading.Event()
        broker.instead[step] = lambda line, channel: reached.set()
        sender = start(broker, exchange="x")
        delivering = sender.deliver(some(1))
        assert reached.wait(DEADLINE)
        delivering.cancel()
        sender.close()
        broker.instead.clear()
        give_time(monkeypatch, sender)
        assert sender.deliver(some(1)).result(DEADLINE) == {}, "the next delivery opens its own"
        wait_for(lambda: not broker.lines[0].thread.is_alive())


def test_closing_during_a_delivery_ends_politely_and_the_next_one_opens_again(
    broker: ScriptedBroker, sender: Sender
) -> None:
    delivering = sender.deliver(some(1, 2))
    arrived(broker, 2)
    delivering.cancel()
    sender.close()
    assert broker.count(spec.Connection.Close) == 1
    sender.close()
    delivering = sender.deliver(some(1, 2))
    again = arrived(broker, 2, after=2)
    assert [(message.line.number, message.tag) for message in again] == [(2, 1), (2, 2)]
    again[1].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def test_a_delivery_goes_on_over_a_close(broker: ScriptedBroker, sender: Sender) -> None:
    delivering = sender.deliver(some(1, 2, 3))
    arrived(broker, 3)
    sender.close()
    again = arrived(broker, 3, after=3)
    assert numbers(again) == [1, 2, 3]
    again[2].ack(multiple=True)
    assert delivering.result(DEADLINE) == {}


def test_a_connection_that_ends_between_two_deliveries_is_opened_again(start: Start) -> None:
    with ScriptedBroker(confirm) as broker:
        sender = start(broker)
        assert sender.deliver([]).result(DEADLINE) == {}
        assert sender.deliver(some(1)).result(DEADLINE) == {}
        broker.lines[0].close()
        assert sender.deliver(some(2)).result(DEADLINE) == {}
        broker.lines[-1].drop()
        assert sender.deliver(some(3)).result(DEADLINE) == {}
    assert list(dict.fromkeys(numbers(broker.messages))) == [1, 2, 3]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "canary",
        "//me:canary@host/",
        "http://me:canary@host/",
        "postgresql://me:canary@host/",
        "amqp://me:canary@host:port/",
        "amqp://me:canary@host,amqp.example/",
        "amqp://me:canary@host/a,b",
        "amqp://me:canary@host/a b",
        "amqp://me:canary@host/;amqp://me:canary@other/",
        "amqp://me:canary@host/,other:5672",
        "amqp://me:canary@host/,amqp://me:canary@other:port/",
        "amqp://me:1/canary@host/",
        "amqp://me:1?canary@host/",
        "amqp://me:1#canary@host/",
        "amqp://me:canary@host:99999999/",
        "amqp://me:canary@[host/",
        "amqp://me:canary@host/?frame_max=1",
        "amqp://me:canary@host/?channel_max=canary",
        "amqp://me:canary@host/?retry_delay=canary",
        "amqp://me:canary@host/?canary=1",
        "amqps://me:canary@host/?ssl_options={canary",
        "amqps://me:canary@host/?ssl_options={'certfile':'/canary','keyfile':'/canary'}",
    ],
)
def test_a_wrong_url_is_said_without_what_is_in_it(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Publisher(url, source="/test")
    assert "AMQP URL" in str(raised.value)
    assert "canary" not in str(raised.value)
    assert raised.value.__suppress_context__, "nor does its cause show it"


@pytest.mark.parametrize(
    "template", ["{", "}", "{}", "{0}", "{nope}", "{topic.x}", "{topic[x]}", "{topic!x}", "{key:d}"]
)
def test_a_wrong_template_is_said(template: str) -> None:
    with pytest.raises(SettingsError, match="routing key"):
        Publisher("amqp://me:canary@host/", source="/test", routing_key=template)
