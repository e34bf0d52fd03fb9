"""The publisher: confirms, returns, reconnects. The only file that knows AMQP.

One channel with publisher confirms, and a map from delivery tag to message. RabbitMQ confirms what it could not route,
too, hence `mandatory`: the return comes before the confirm. What was under way when a connection or channel was
lost is unknown, and is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import logging
import re
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError, ChannelClosed, ConnectionClosedByBroker

from .. import killpoints
from ..documents import clean, printable
from ..errors import SettingsError
from ..window import Outgoing

log = logging.getLogger("outbox.relay")

UNCONFIRMED = 1_000
MOST_NACKS = 8
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_ENCODING_ERRORS = (ValueError, TypeError, OverflowError, AssertionError, struct.error, AMQPError)
# Closing a channel or connection with one of these codes says nothing of a message: the exchange is missing, we may
# not, somebody asked for it.
_NOT_THE_MESSAGE = {200, 320, 402, 403, 404, 405, 530, 541}


@dataclass(slots=True)
class Attempt:
    """A message under way. `wire_id` is this attempt's own; `returned` is why the broker could not route it."""

    message: Outgoing
    wire_id: str
    returned: str | None = None


class Publisher:
    """Delivers messages to an exchange. `deliver` returns when the broker has answered for each.

    `routing_key` is a template of {topic} and {key}. `strict`: at most one unconfirmed message of a key, so that order
    holds through refusals and reconnects. `may_send` is asked before anything is sent; `on_trouble` is told what is
    wrong, in words without secrets, and None when it is over.
    """

    def __init__(
        self,
        url: str,
        *,
        source: str,
        exchange: str = "",
        declare: str | None = None,
        routing_key: str = "{topic}",
        strict: bool = False,
        may_send: Callable[[], bool] = lambda: True,
        on_trouble: Callable[[str | None], None] = lambda trouble: None,
    ) -> None:
        try:
            self._parameters = pika.URLParameters(url)
            routing_key.format(topic="", key="")
        except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise SettingsError(f"the AMQP URL or the routing key can't be read: {type(error).__name__}") from None
        self._parameters.heartbeat = 10
        self._parameters.socket_timeout = self._parameters.stack_timeout = 5
        self._parameters.connection_attempts = 1
        self._source, self._exchange, self._declare = source, exchange, declare
        self._template = None if routing_key == "{topic}" else routing_key
        self._strict, self._may_send, self._on_trouble = strict, may_send, on_trouble
        self._connection: AsyncioConnection | None = None
        self._channel: Any = None
        self._session = ""
        self._blocked: str | None = None
        self._lost: str | None = None
        self._wait = _FIRST_WAIT
        self._tag = 0
        self._unconfirmed: dict[int, Attempt] = {}
        self._by_wire_id: dict[str, Attempt] = {}
        self._queue: deque[Outgoing] = deque()
        self._later: list[tuple[float, int, Outgoing]] = []
        self._nacks: dict[int, int] = {}
        self._behind: dict[str, deque[Outgoing]] = {}  # strict: what waits for the one of its key that is under way
        self._stopped_keys: set[str] = set()
        self._suspects: set[int] = set()
        self._parked: dict[int, tuple[Outgoing, str]] = {}
        self._left = 0
        self._changed = asyncio.Event()

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: set[str]) -> dict[int, tuple[Outgoing, str]]:
        """Publish messages in their order; return those that could not go out, with the reason.

        However long the broker is away: what it has confirmed is done, what it has not is sent again. `stopped_keys`
        are those with a parked message: in strict mode, later ones of the key are parked behind it.
        """
        self._queue = deque(messages)
        self._later, self._behind, self._parked = [], {}, {}
        self._stopped_keys = set(stopped_keys)
        self._left = len(messages)
        while self._left:
            if self._channel is None:
                await self._connect()
            self._pump()
            self._changed.clear()
            if self._left and self._channel is not None:
                now = asyncio.get_running_loop().time()
                due = self._later[0][0] - now if self._later else 0.5
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), max(0.001, min(0.5, due)))
        return self._parked

    async def close(self) -> None:
        """Close the connection, without waiting for a broker that does not answer."""
        self._forget()
        connection, self._connection = self._connection, None
        if connection is not None and connection.is_open:
            closed = asyncio.Event()
            connection.add_on_close_callback(lambda *_: closed.set())
            connection.close()
            try:
                await asyncio.wait_for(closed.wait(), 2)
            except TimeoutError:
                connection._adapter_disconnect()

    # Sending.

    def _pump(self) -> None:
        """Send as much as may be under way."""
        room = 1 if self._suspects else UNCONFIRMED
        now = asyncio.get_running_loop().time()
        while self._later and self._later[0][0] <= now:
            self._queue.appendleft(heapq.heappop(self._later)[2])
        while self._queue and len(self._unconfirmed) < room and self._channel is not None and not self._blocked:
            if not self._may_send():
                return
            message = self._queue.popleft()
            if self._strict and message.key is not None:
                if message.key in self._stopped_keys:
                    self._park(message, f"behind an earlier parked message of its key {message.key!r}")
                    continue
                if message.key in self._behind and message.id not in self._nacks:
                    self._behind[message.key].append(message)
                    continue
                self._behind.setdefault(message.key, deque())
            self._send(message)

    def _send(self, message: Outgoing) -> None:
        attempt = Attempt(message, f"{message.message_id}/{self._session}.{self._tag + 1}")
        try:
            if len(self.routing_key(message).encode()) > 255:
                raise ValueError(f"the routing key has more than 255 bytes: {self.routing_key(message)[:50]}…")
            properties = self._properties(message, attempt.wire_id)
            body = (message.payload or "null").encode()
            self._channel.basic_publish(self._exchange, self.routing_key(message), body, properties, mandatory=True)
        except (pika.exceptions.ChannelWrongStateError, pika.exceptions.ConnectionWrongStateError):
            self._queue.appendleft(message)
            self._unlock(message)
            self._drop_channel("the connection was lost")
            return
        except pika.exceptions.UnsupportedAMQPFieldException as error:
            self._park(message, clean(f"AMQP can't carry {error.args[-1]!r} in a header", 500))
            return
        except _ENCODING_ERRORS as error:
            self._park(message, clean(f"AMQP can't carry it: {error or type(error).__name__}", 500))
            return
        killpoints.sending("K9")
        self._tag += 1
        self._unconfirmed[self._tag] = attempt
        self._by_wire_id[attempt.wire_id] = attempt

    def routing_key(self, message: Outgoing) -> str:
        if self._template is None:
            return message.topic
        return self._template.format(topic=message.topic, key=message.key or "")

    def _properties(self, message: Outgoing, wire_id: str) -> pika.BasicProperties:
        headers = json.loads(message.headers) if message.headers else {}
        if not isinstance(headers, dict):
            raise ValueError("its headers are not an object")
        headers = {name: value for name, value in headers.items() if not _RESERVED.match(name)}
        headers |= {
            "cloudEvents_specversion": "1.0",
            "cloudEvents_id": message.message_id,
            "cloudEvents_source": self._source,
            "cloudEvents_type": message.topic,
            "cloudEvents_time": message.created_at.isoformat(),
            "cloudEvents_sequence": f"{message.id:020}",
        }
        if message.key is not None:
            headers["cloudEvents_subject"] = message.key
        return pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id=wire_id, headers=headers
        )

    # What the broker says.

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        acked = isinstance(method, pika.spec.Basic.Ack)
        tags = [method.delivery_tag]
        if method.multiple:  # tags ascend in the order of the map
            tags = list(itertools.takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))
        for tag in tags:
            attempt = self._unconfirmed.pop(tag, None)
            if attempt is None:
                continue
            del self._by_wire_id[attempt.wire_id]
            self._suspects.discard(attempt.message.id)
            if attempt.returned is not None:
                self._park(attempt.message, attempt.returned)
            elif acked:
                self._settle(attempt.message)
            else:
                self._refused(attempt.message)
        self._pump()
        if not self._left or not self._unconfirmed:
            self._changed.set()

    def _refused(self, message: Outgoing) -> None:
        nacks = self._nacks[message.id] = self._nacks.get(message.id, 0) + 1
        if nacks >= MOST_NACKS:
            self._park(message, f"the broker refused it {nacks} times")
            return
        delay = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (nacks - 1))
        heapq.heappush(self._later, (asyncio.get_running_loop().time() + delay, message.id, message))
        self._changed.set()

    def _returned(self, _: Any, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        attempt = self._by_wire_id.get(str(properties.message_id))
        if attempt is not None:
            attempt.returned = (
                f"unroutable: {method.reply_code} {method.reply_text} (routing key {method.routing_key!r})"
            )

    def _settle(self, message: Outgoing) -> None:
        self._left -= 1
        self._nacks.pop(message.id, None)
        self._unlock(message)

    def _park(self, message: Outgoing, reason: str) -> None:
        self._parked[message.id] = message, clean(reason)
        log.warning("message %s (%s) is parked: %s", message.id, printable(message.topic), printable(reason))
        if self._strict and message.key is not None:
            self._stopped_keys.add(message.key)
        self._settle(message)

    def _unlock(self, message: Outgoing) -> None:
        """Let the next one of its key go."""
        if self._strict and message.key is not None:
            waiting = self._behind.pop(message.key, None)
            if waiting:
                self._queue.extendleft(reversed(waiting))

    # The connection.

    async def _connect(self) -> None:
        """Return with an open channel in confirm mode, however long it takes."""
        while self._channel is None:
            if self._lost is not None:
                self._trouble(self._lost)
                await asyncio.sleep(self._wait)
                self._wait = min(_LONGEST_WAIT, self._wait * 2)
            self._lost = None
            try:
                await asyncio.wait_for(self._open(), 15)
            except TimeoutError:
                self._drop_connection("the broker does not answer")
            except Exception as error:
                self._drop_connection(_reason(error))
        self._trouble(None)
        self._wait = _FIRST_WAIT

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None = None) -> None:
            if not opened.done():
                opened.set_exception(error) if error else opened.set_result(result)

        if self._connection is None or not self._connection.is_open:
            connection = AsyncioConnection(
                self._parameters,
                on_open_callback=settle,
                on_open_error_callback=lambda _, error: settle(None, _as_error(error)),
                on_close_callback=self._connection_closed,
                custom_ioloop=loop,
            )
            self._connection = connection
            await opened
            connection.add_on_connection_blocked_callback(self._on_blocked)
            connection.add_on_connection_unblocked_callback(self._on_unblocked)
        opened = loop.create_future()
        channel: Any = self._connection.channel(on_open_callback=settle)

        def closed(_: Any, error: BaseException) -> None:
            settle(None, error)
            self._channel_closed(channel, error)

        channel.add_on_close_callback(closed)
        await opened
        if self._declare:
            opened = loop.create_future()
            channel.exchange_declare(self._exchange, self._declare, durable=True, callback=settle)
            await opened
        elif self._exchange:
            opened = loop.create_future()
            channel.exchange_declare(self._exchange, passive=True, callback=settle)
            await opened
        opened = loop.create_future()
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._confirmed, callback=settle)
        await opened
        self._tag, self._session = 0, uuid4().hex[:12]
        self._channel = channel

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self._blocked = f"the broker blocks publishers: {clean(str(frame.method.reason), 200)}"
        self._trouble(self._blocked)

    def _on_unblocked(self, *_: Any) -> None:
        self._blocked = None
        self._trouble(None)
        self._changed.set()

    def _connection_closed(self, connection: Any, error: Any) -> None:
        if connection is self._connection:
            self._blame(error)
            self._connection, self._blocked = None, None
            self._drop_channel(_reason(error))

    def _channel_closed(self, channel: Any, error: Any) -> None:
        if channel is self._channel:
            self._blame(error)
            self._drop_channel(_reason(error))

    def _blame(self, error: Any) -> None:
        """Find the message that the broker closes channels for: alone under way, it is the one."""
        code = error.reply_code if isinstance(error, ChannelClosed | ConnectionClosedByBroker) else 0
        if not code or code in _NOT_THE_MESSAGE:
            return
        if len(self._unconfirmed) == 1:
            ((tag, attempt),) = self._unconfirmed.items()
            del self._unconfirmed[tag]
            self._by_wire_id.clear()
            self._suspects.discard(attempt.message.id)
            self._park(attempt.message, f"the broker closed the channel over it: {_reason(error)}")
        else:
            self._suspects = {attempt.message.id for attempt in self._unconfirmed.values()}

    def _drop_channel(self, why: str) -> None:
        """What was under way is unknown: it goes first when there is a channel again."""
        self._channel, self._lost = None, why
        unknown = sorted((attempt.message for attempt in self._unconfirmed.values()), key=lambda message: message.id)
        self._forget()
        for message in reversed(unknown):
            # Strict: what waits behind it must come after it, and it is free to be the one under way.
            self._unlock(message)
            self._queue.appendleft(message)
        if self._strict:
            self._queue = deque(sorted(self._queue, key=lambda message: message.id))
        self._changed.set()

    def _drop_connection(self, why: str) -> None:
        connection, self._connection = self._connection, None
        self._blocked = None
        if connection is not None and connection.is_open:
            connection.close()
        self._drop_channel(why)

    def _forget(self) -> None:
        self._channel = None
        self._unconfirmed.clear()
        self._by_wire_id.clear()

    def _trouble(self, trouble: str | None) -> None:
        self._on_trouble(trouble)


_RESERVED = re.compile(r"cloudEvents[_:]", re.IGNORECASE)


def _as_error(error: Any) -> BaseException:
    return error if isinstance(error, BaseException) else OSError(str(error))


def _reason(error: Any) -> str:
    """Return in one line why the broker is not there. It names no password: pika's errors hold no URL."""
    if isinstance(error, ChannelClosed | ConnectionClosedByBroker):
        return f"{error.reply_code} {clean(error.reply_text, 300)}"
    for inner in getattr(error, "exceptions", None) or error.args if isinstance(error, BaseException) else ():
        if isinstance(inner, BaseException) and str(inner):
            return _reason(inner)
    text = str(error) if str(error) else type(error).__name__
    return clean(f"{type(error).__name__}: {text}" if isinstance(error, BaseException) else text, 300)
