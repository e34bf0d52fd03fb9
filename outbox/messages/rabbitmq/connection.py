"""A connection, a channel and a call on it, awaited: what pika says by callbacks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosed, ConnectionClosedByBroker, ConnectionOpenAborted

from ...errors import SettingsError
from ...texts import clean

FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds before a broker that is away is tried again: the first time, and at most."""

PATIENCE = 5.0
"""Seconds in which a broker must answer each of: connection, channel."""


def pause(failures: int) -> float:
    """Return how many seconds to wait after so many failures in a row."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 30))


def parameters(url: str) -> pika.URLParameters:
    """Return what pika makes of an AMQP URL, with limits by which a dead broker is noticed in seconds."""
    try:
        if not url.startswith(("amqp://", "amqps://")):
            raise ValueError
        found = pika.URLParameters(url)
    except Exception as error:
        # And not its text, which may quote the password.
        problem = (
            f"the AMQP URL can't be read ({type(error).__name__}): it is like amqp://user:password@host:5672/vhost"
        )
        raise SettingsError(problem) from None
    if "heartbeat=" not in url:
        found.heartbeat = 10
    found.socket_timeout = found.stack_timeout = PATIENCE
    found.connection_attempts = 1
    return found


async def open_connection(
    parameters: pika.URLParameters, ready: Callable[[AsyncioConnection], None]
) -> AsyncioConnection:
    """Return an open connection; raises what pika says if there is none to be had.

    `ready` is called with it before it is returned and before the broker's next frame is read: it adds callbacks.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def done(opened: AsyncioConnection) -> None:
        ready(opened)
        ended.set_result(None)

    connection = AsyncioConnection(parameters, done, lambda _, error: ended.set_result(error), custom_ioloop=loop)
    try:
        await asyncio.wait({ended})
    except asyncio.CancelledError:
        # The loop may end soon: a handshake that goes on would leave its socket open.
        if ended.done():
            await close(connection)
        else:
            if not connection.is_closing:
                connection.close()
            await asyncio.wait({ended}, timeout=PATIENCE / 5)
        raise
    error = ended.result()
    if error is not None:
        raise error
    return connection


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


async def close(connection: AsyncioConnection | None) -> None:
    """Close in order, or, when the broker does not answer in time, abruptly: pika waits as long as it takes."""
    if connection is None or connection.is_closed:
        return
    closed = asyncio.Event()
    connection.add_on_close_callback(lambda *_: closed.set())
    try:
        connection.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), PATIENCE / 5)
    finally:
        # Also when cancelled: nobody else knows the connection any more.
        if not connection.is_closed:
            connection._adapter_disconnect_stream()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), PATIENCE / 5)


def reason(error: Any) -> str:
    """Return in one line why the broker is not there. It names no password: pika's errors hold no URL."""
    if isinstance(error, ChannelClosed | ConnectionClosedByBroker):
        return f"{error.reply_code} {clean(error.reply_text, 300)}"
    # Only we give up what is opening, and pika for us when its time is over.
    if isinstance(error, ConnectionOpenAborted) or type(error).__name__.endswith(("Timeout", "TimeoutError")):
        return "the broker does not answer"
    # What says nothing itself holds what does: all attempts in a list, the attempt's own cause.
    inner = (*getattr(error, "exceptions", ())[-1:], getattr(error, "exception", None), *getattr(error, "args", ()))
    for cause in inner:
        if isinstance(cause, BaseException):
            return reason(cause)
    text = str(error) if str(error) else type(error).__name__
    return clean(f"{type(error).__name__}: {text}" if isinstance(error, BaseException) else text, 300)
