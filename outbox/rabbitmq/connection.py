"""A connection, a channel and a call on it, awaited: what pika says by callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosed, ConnectionClosedByBroker

from ..documents import clean
from ..errors import SettingsError

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds before a broker that is away is tried again: the first time, and at most."""

ANSWER = 15.0
"""Seconds after which a broker that says nothing while a connection is made is taken for absent."""


def parameters(url: str) -> pika.URLParameters:
    """Return what pika makes of an AMQP URL, with limits by which a dead broker is noticed in seconds."""
    try:
        found = pika.URLParameters(url)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # And not its text, which may quote the password.
        raise SettingsError(f"the AMQP URL can't be read: {type(error).__name__}") from None
    if "heartbeat=" not in url:
        found.heartbeat = 10
    found.socket_timeout = found.stack_timeout = 5
    found.connection_attempts = 1
    return found


async def open_connection(
    parameters: pika.URLParameters, on_closed: Callable[[Any, BaseException], None]
) -> AsyncioConnection:
    """Return an open connection; raises what pika says if there is none to be had."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[AsyncioConnection] = loop.create_future()

    def fail(_: Any, error: Any) -> None:
        if not opened.done():
            opened.set_exception(error if isinstance(error, BaseException) else OSError(str(error)))

    connection = AsyncioConnection(
        parameters,
        on_open_callback=lambda it: None if opened.done() else opened.set_result(it),
        on_open_error_callback=fail,
        on_close_callback=on_closed,
        custom_ioloop=loop,
    )
    try:
        return await opened
    except asyncio.CancelledError:
        abandon(connection)
        raise


async def open_channel(connection: AsyncioConnection, on_closed: Callable[[Any, BaseException], None]) -> Any:
    """Return an open channel."""
    opened = asyncio.get_running_loop().create_future()
    channel: Any = connection.channel(on_open_callback=lambda it: None if opened.done() else opened.set_result(it))
    channel.add_on_close_callback(lambda _, error: None if opened.done() else opened.set_exception(error))
    channel.add_on_close_callback(on_closed)
    return await opened


async def ask(channel: Any, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of a channel and return the broker's answer; raises why the channel was closed instead."""
    answered = asyncio.get_running_loop().create_future()
    channel.add_on_close_callback(lambda _, error: None if answered.done() else answered.set_exception(error))
    method(*arguments, callback=lambda frame: None if answered.done() else answered.set_result(frame), **options)
    return await answered


async def close(connection: AsyncioConnection | None, seconds: float = 2.0) -> None:
    """Close in order, or, when the broker does not answer in time, abruptly."""
    if connection is None or not connection.is_open:
        return
    closed = asyncio.Event()
    connection.add_on_close_callback(lambda *_: closed.set())
    connection.close()
    try:
        await asyncio.wait_for(closed.wait(), seconds)
    except TimeoutError:
        abandon(connection)


def abandon(connection: AsyncioConnection) -> None:
    """Cut a connection off, open or not yet. pika's own `close` waits for the broker's answer."""
    if not connection.is_closed:
        connection._terminate_stream(OSError("abandoned"))


def reason(error: Any) -> str:
    """Return in one line why the broker is not there. It names no password: pika's errors hold no URL."""
    if isinstance(error, ChannelClosed | ConnectionClosedByBroker):
        return f"{error.reply_code} {clean(error.reply_text, 300)}"
    for inner in getattr(error, "exceptions", None) or error.args if isinstance(error, BaseException) else ():
        if isinstance(inner, BaseException) and str(inner):
            return reason(inner)
    text = str(error) if str(error) else type(error).__name__
    return clean(f"{type(error).__name__}: {text}" if isinstance(error, BaseException) else text, 300)
