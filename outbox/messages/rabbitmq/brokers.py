"""Which broker to try next: several URLs, and each address of their names, one after the other.

pika tries no second address once the first one has taken the connection, however silent it is then. So each attempt is
at one address, and has PATIENCE of its own.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import pika
from pika.adapters.asyncio_connection import AsyncioConnection

from . import connection

log = logging.getLogger("outbox.rabbitmq")

_BETWEEN = re.compile(r"[\s,]+(?=amqps?://)")
"""What separates two URLs. Another comma belongs to the URL: pika's ssl_options have some."""


class Brokers:
    """Opens connections, each to the next broker. `urls` are one or several AMQP URLs, with commas or spaces between.

    A round tries each address of each URL once. What is lost or fails moves on to the next one; a round in which all
    have failed begins again, after the delay that is the caller's.
    """

    def __init__(self, urls: str) -> None:
        self._urls = [connection.parameters(url) for url in _BETWEEN.split(urls.strip(" \t\r\n,"))]
        self._left: deque[pika.URLParameters] = deque()  # of this round; their names may not be resolved yet
        self._resolved: deque[tuple[str, pika.URLParameters]] = deque()
        self._failures: dict[str, str] = {}
        self._name = ""

    async def open(self, ready: Callable[[AsyncioConnection], None]) -> AsyncioConnection:
        """Opens a connection to the next broker, or raises why there is none. See `connection.open_connection`."""
        parameters = await self._next()
        opened = await connection.open_connection(parameters, ready)
        log.info("connected to %s", self._name)
        return opened

    def succeeded(self) -> None:
        """Notes that the broker does what it is asked for: what failed before is forgotten."""
        self._failures.clear()

    def failed(self, why: str) -> str | None:
        """Notes why the broker can't be used; at the end of a round returns what is wrong with all that were tried."""
        self._failures[self._name] = why.removeprefix(self.named(""))
        if self._left or self._resolved:
            return None
        failures, self._failures = self._failures, {}
        return "; ".join(f"{name}: {why}" for name, why in failures.items())

    def named(self, why: str) -> str:
        """Returns what is wrong with the broker, with its host and port."""
        return f"{self._name}: {why}" if self._name else why

    async def _next(self) -> pika.URLParameters:
        if not self._resolved:
            if not self._left:
                self._left.extend(self._urls)
            url = self._left.popleft()
            self._name = f"{url.host}:{url.port}"
            self._resolved.extend(await _resolve(url))
        self._name, chosen = self._resolved.popleft()
        return chosen


async def _resolve(url: pika.URLParameters) -> list[tuple[str, pika.URLParameters]]:
    """Returns what to call each address of a URL's host, and the parameters for it."""
    ask = asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    try:
        found: list[Any] = await asyncio.wait_for(ask, connection.PATIENCE)
    except TimeoutError:
        raise OSError(f"no answer for the name {url.host!r}") from None
    made = []
    for address in dict.fromkeys(entry[4][0] for entry in found):
        one = copy.copy(url)
        one.host = address
        if url.ssl_options is not None:  # the certificate is the name's
            options = url.ssl_options
            one.ssl_options = pika.SSLOptions(options.context, options.server_hostname or url.host)
        name = f"{url.host}:{url.port}"
        made.append((name if address == url.host else f"{name} ({address})", one))
    return made
