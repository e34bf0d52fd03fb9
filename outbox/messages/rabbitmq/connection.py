"""Wraps pika's connections, channels and calls as coroutines, because pika itself uses callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosed, ConnectionClosedByBroker, ConnectionOpenAborted

from ...errors import SettingsError
from ...process.service import Delays
from ...texts import clean

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds before an unreachable broker is tried again, doubled each time: soon after a restart, then less often."""

PATIENCE = 5.0
"""Seconds in which a broker must open a connection, and a channel. One that takes longer counts as unreachable."""

OPEN_WITHIN = 3 * PATIENCE
"""Seconds for opening a connection and a channel, and declaring queues and exchanges."""

CLOSE_WITHIN = 1.0
"""Seconds in which a broker may confirm that it closes. Nothing can be lost by then."""

HEARTBEAT = 10
"""Seconds between AMQP heartbeats, unless the URL sets them. A dead broker is noticed after two."""


def delays() -> Delays:
    """Returns the delays before an unreachable broker is tried again."""
    return Delays(FIRST_WAIT, LONGEST_WAIT)


def parameters(url: str) -> pika.URLParameters:
    """Returns pika's parameters for an AMQP URL, with limits that detect a dead broker within seconds."""
    try:
        if not url.startswith(("amqp://", "amqps://")) or _is_torn(url):
            raise ValueError
        found = pika.URLParameters(url)
    except Exception as error:
        # The error's text is left out, because it may quote the password.
        problem = (
            f"the AMQP URL can't be read ({type(error).__name__}): it is like amqp://user:password@host:5672/vhost. "
            "Several are whole URLs with commas between them; a comma in a password or vhost is %2C"
        )
        raise SettingsError(problem) from None
    if "heartbeat=" not in url:
        found.heartbeat = HEARTBEAT
    found.socket_timeout = found.stack_timeout = PATIENCE
    found.connection_attempts = 1
    return found


def _is_torn(url: str) -> bool:
    """Returns whether a host or vhost looks like several, or like a part of a password: pika takes any text for either,
    and we show the host.
    """
    _, netloc, *rest = urlsplit(url)
    return bool(re.search(r"[,;\s]|://", netloc.rpartition("@")[2] + rest[0]) or "@" in "".join(rest))


class _Connection(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """Ends quietly when closed during the handshake: pika 1.4 then passes a class where it expects an error."""

    def _on_connection_workflow_done(self, outcome: Any) -> None:
        super()._on_connection_workflow_done(outcome() if isinstance(outcome, type) else outcome)


async def open_connection(
    parameters: pika.URLParameters, ready: Callable[[AsyncioConnection], None]
) -> AsyncioConnection:
    """Opens a connection, or raises pika's error.

    `ready` is called with the connection before the broker's next frame is read, to add callbacks.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def done(opened: AsyncioConnection) -> None:
        ready(opened)
        ended.set_result(None)

    connection = _Connection(parameters, done, lambda _, error: ended.set_result(error), custom_ioloop=loop)
    try:
        await asyncio.wait({ended})
    except asyncio.CancelledError:
        # The loop may end soon, and an unfinished handshake would leave its socket open.
        if ended.done():
            await close(connection)
        else:
            if not connection.is_closing:
                connection.close()
            await asyncio.wait({ended}, timeout=CLOSE_WITHIN)
        raise
    error = ended.result()
    if error is not None:
        raise error
    return connection


async def open_channel(connection: AsyncioConnection, on_closed: Callable[[Any, BaseException], None]) -> Any:
    """Opens a channel, or raises the reason why it was closed."""
    opened = asyncio.get_running_loop().create_future()
    channel: Any = connection.channel(on_open_callback=lambda it: None if opened.done() else opened.set_result(it))
    channel.add_on_close_callback(lambda _, error: None if opened.done() else opened.set_exception(error))
    channel.add_on_close_callback(on_closed)
    return await opened


async def ask(channel: Any, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls a method of a channel and returns the broker's answer, or raises the reason why the channel was closed."""
    answered = asyncio.get_running_loop().create_future()
    channel.add_on_close_callback(lambda _, error: None if answered.done() else answered.set_exception(error))
    method(*arguments, callback=lambda frame: None if answered.done() else answered.set_result(frame), **options)
    return await answered


async def close(connection: AsyncioConnection | None) -> None:
    """Closes a connection, abruptly if the broker doesn't answer in time: pika alone would wait without limit."""
    if connection is None or connection.is_closed:
        return
    closed = asyncio.Event()
    connection.add_on_close_callback(lambda *_: closed.set())
    try:
        connection.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), CLOSE_WITHIN)
    finally:
        # Also after a cancellation, because nothing else holds the connection any more.
        if not connection.is_closed:
            connection._adapter_disconnect_stream()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), CLOSE_WITHIN)


def reason(error: Any) -> str:
    """Returns in one line why the broker is unreachable. It contains no password: pika's errors hold no URL."""
    if isinstance(error, ChannelClosed | ConnectionClosedByBroker):
        return f"{error.reply_code} {clean(error.reply_text, 300)}"
    # Opening is aborted only by us, or by pika at its timeout.
    if isinstance(error, ConnectionOpenAborted) or type(error).__name__.endswith(("Timeout", "TimeoutError")):
        return "the broker does not answer"
    # Some of pika's errors only wrap others: a list of attempts, or an attempt's cause.
    inner = (*getattr(error, "exceptions", ())[-1:], getattr(error, "exception", None), *getattr(error, "args", ()))
    for cause in inner:
        if isinstance(cause, BaseException):
            return reason(cause)
    text = str(error) if str(error) else type(error).__name__
    return clean(f"{type(error).__name__}: {text}" if isinstance(error, BaseException) else text, 300)
