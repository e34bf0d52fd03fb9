"""Runs an AMQP broker that answers as its test says, for what a real one can't be made to do.

It speaks as much AMQP 0-9-1 as a publisher needs, and keeps no messages. A script sees each message as it arrives and
answers it, or leaves that to the test: confirms come late, in another order, for many at once, or never.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pika import amqp_object, frame, spec

from kit.servers import DEADLINE

CAPABILITIES = {
    "publisher_confirms": True,
    "basic.nack": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


@dataclass(frozen=True)
class Message:
    """A message that has arrived, and the ways to answer it: at once by the script, or later by the test."""

    line: Line = field(repr=False)
    channel: int
    # Counted from 1 since the client asked for confirms on this channel; 0 if it didn't.
    tag: int
    exchange: str
    routing_key: str
    mandatory: bool
    properties: spec.BasicProperties = field(repr=False)
    body: bytes

    def ack(self, multiple: bool = False) -> None:
        self.send(spec.Basic.Ack(self.tag, multiple))

    def nack(self, multiple: bool = False) -> None:
        self.send(spec.Basic.Nack(self.tag, multiple))

    def return_(self, code: int = 312, text: str = "NO_ROUTE") -> None:
        """Returns the message. A real broker does so before it confirms; this one does it at any time."""
        self.line.send(
            frame.Method(self.channel, spec.Basic.Return(code, text, self.exchange, self.routing_key)),
            frame.Header(self.channel, len(self.body), self.properties),
            *([frame.Body(self.channel, self.body)] if self.body else []),
        )

    def close_channel(self, code: int = 406, text: str = "PRECONDITION_FAILED") -> None:
        self.line.close_channel(self.channel, code, text)

    def send(self, method: amqp_object.Method) -> None:
        """Sends any method on the message's channel, whether it makes sense or not."""
        self.line.send(frame.Method(self.channel, method))


Script = Callable[[Message], None]
Answer = Callable[["Line", int], None]


def confirm(message: Message) -> None:
    """Confirms the message as soon as it has arrived (a script)."""
    message.ack()


def hold(message: Message) -> None:
    """Leaves the answer to the test, which sends it later or never (a script)."""


class Line:
    """A client's connection."""

    def __init__(self, broker: ScriptedBroker, connected: socket.socket, number: int) -> None:
        self.number = number
        self.closing: set[int] = set()
        self._broker = broker
        self._socket = connected
        self._sending = threading.Lock()
        self._open = True
        # By channel: the tag of the last message, from 0 when confirms were asked for.
        self._tags: dict[int, int] = {}
        # By channel: the parts of a message that is not complete yet.
        self._publish: dict[int, spec.Basic.Publish] = {}
        self._header: dict[int, frame.Header] = {}
        self._body: dict[int, bytes] = {}
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def send(self, *frames: frame.Frame) -> None:
        self.write(b"".join(each.marshal() for each in frames))

    def write(self, data: bytes) -> None:
        """Sends bytes as they are: half a frame, or no frame at all."""
        with self._sending:
            self._socket.sendall(data)

    def close_channel(self, channel: int, code: int = 406, text: str = "PRECONDITION_FAILED") -> None:
        """Closes a channel. What the client sends on it before it knows is dropped."""
        self.closing.add(channel)
        self.send(frame.Method(channel, spec.Channel.Close(code, text, 60, 40)))

    def block(self, reason: str = "low on memory") -> None:
        self.send(frame.Method(0, spec.Connection.Blocked(reason)))

    def unblock(self) -> None:
        self.send(frame.Method(0, spec.Connection.Unblocked()))

    def close(self, code: int = 320, text: str = "CONNECTION_FORCED") -> None:
        """Closes the connection in an orderly way, with a reason."""
        self.send(frame.Method(0, spec.Connection.Close(code, text, 0, 0)))

    def drop(self) -> None:
        """Cuts the connection without notice. What has arrived and was not read is lost."""
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        data = b""
        with self._socket, contextlib.suppress(OSError):
            while self._open and (read := self._socket.recv(65536)):
                data += read
                while self._open:
                    used, arrived = frame.decode_frame(data)
                    if not used:
                        break
                    data = data[used:]
                    self._take(arrived)

    def _take(self, arrived: frame.Frame | frame.ProtocolHeader | None) -> None:
        instead = self._broker.instead.get(type(getattr(arrived, "method", arrived)))
        if isinstance(arrived, frame.ProtocolHeader):
            if instead is not None:
                instead(self, 0)
                return
            properties = {"product": "scripted", "capabilities": CAPABILITIES}
            self._answer(0, spec.Connection.Start(0, 9, properties, "PLAIN", "en_US"))
        elif isinstance(arrived, frame.Heartbeat):
            self.send(arrived)
        elif isinstance(arrived, frame.Method):
            if arrived.channel_number not in self.closing or isinstance(arrived.method, spec.Channel.CloseOk):
                # One step for those who count: nobody sees an answer without its record, or a record before its answer.
                with self._broker.answering:
                    if instead is not None:
                        instead(self, arrived.channel_number)
                    else:
                        self._obey(arrived.channel_number, arrived.method)
                    self._broker.methods.append(arrived.method)
        elif isinstance(arrived, frame.Header | frame.Body) and arrived.channel_number in self._publish:
            self._collect(arrived)

    def _obey(self, channel: int, method: amqp_object.Method) -> None:
        match method:
            case spec.Connection.StartOk():
                self._answer(0, spec.Connection.Tune(2047, 131072, self._broker.heartbeat))
            case spec.Channel.CloseOk():
                self.closing.discard(channel)
                self._forget(channel)
            case spec.Channel.Close():
                self._forget(channel)
                self._answer(channel, spec.Channel.CloseOk())
            case spec.Confirm.Select():
                self._tags[channel] = 0
                if not method.nowait:
                    self._answer(channel, spec.Confirm.SelectOk())
            case spec.Basic.Publish():
                self._publish[channel] = method
            case spec.Queue.Declare():
                self._answer(channel, spec.Queue.DeclareOk(method.queue, 0, 0))
            case _ if method.synchronous and not getattr(method, "nowait", False):
                # All other methods that need an answer take an empty one, as Channel.Open takes Channel.OpenOk.
                family, name = type(method).__qualname__.split(".")
                self._answer(channel, getattr(getattr(spec, family), f"{name}Ok")())

    def _forget(self, channel: int) -> None:
        for kept in (self._tags, self._publish, self._header, self._body):
            kept.pop(channel, None)

    def _collect(self, part: frame.Header | frame.Body) -> None:
        channel = part.channel_number
        if isinstance(part, frame.Header):
            self._header[channel] = part
            self._body[channel] = b""
        else:
            self._body[channel] += part.fragment
        if len(self._body[channel]) < self._header[channel].body_size:
            return
        publish, header, body = self._publish.pop(channel), self._header.pop(channel), self._body.pop(channel)
        if channel in self._tags:
            self._tags[channel] += 1
        self._broker.arrived(
            Message(
                line=self,
                channel=channel,
                tag=self._tags.get(channel, 0),
                exchange=publish.exchange,
                routing_key=publish.routing_key,
                mandatory=publish.mandatory,
                properties=header.properties,
                body=body,
            )
        )

    def _answer(self, channel: int, method: amqp_object.Method) -> None:
        self.send(frame.Method(channel, method))


class ScriptedBroker:
    """Listens on loopback. Each script answers one message, the last one all that follow.

    `messages`, `methods` and `lines` are what has arrived, over all connections and in order of arrival. `count` knows
    a method as soon as the client has its answer. `instead` maps a method (or the protocol's header) to what is done
    instead of its answer, such as nothing.
    """

    def __init__(self, *scripts: Script, heartbeat: int = 0) -> None:
        self.heartbeat = heartbeat
        self.messages: list[Message] = []
        self.methods: list[amqp_object.Method] = []
        self.lines: list[Line] = []
        self.instead: dict[type, Answer] = {}
        self.answering = threading.Lock()
        self._scripts = list(scripts or [confirm])
        self._taking = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def count(self, kind: type[amqp_object.Method]) -> int:
        """Returns how many methods of a kind have arrived: `count(spec.Channel.Open)`."""
        with self.answering:
            return sum(isinstance(method, kind) for method in self.methods)

    def arrived(self, message: Message) -> None:
        with self._taking:
            script = self._scripts[min(len(self.messages), len(self._scripts) - 1)]
            self.messages.append(message)
        script(message)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # This wakes the thread that waits for connections; close alone doesn't.
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(DEADLINE)
        for line in self.lines:
            line.drop()
            line.thread.join(DEADLINE)

    def __enter__(self) -> ScriptedBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._listening.accept()
                self.lines.append(Line(self, connected, len(self.lines) + 1))
                self.lines[-1].thread.start()
