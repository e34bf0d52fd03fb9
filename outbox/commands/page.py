"""Shows the web page beside what else a command does, in a thread."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from threading import Thread

from ..errors import SettingsError

PORT = 8088
"""The port of the page, where no other is asked for."""

CLOSE_WITHIN = 3.0
"""Seconds in which the page ends; open streams have one of them."""


@contextmanager
def shown(
    dsn: str, name: str, may: Collection[str] = ("look", "decide", "operate"), port: int | None = None
) -> Iterator[str]:
    """Shows the page to the person at this machine, who is known by this name, and yields its URL.

    Without a `port`, it is at the usual one, or at any that is free if that is taken. Raises SettingsError if the extra
    isn't installed.
    """
    try:
        import uvicorn

        from ..ui.app import alone
        from ..ui.person import Person
    except ModuleNotFoundError as error:
        raise SettingsError(f"the page needs {error.name}: pip install 'outbox-engine[ui]'") from None
    page = alone(dsn, Person(name, may))
    with closing(listening("127.0.0.1", port)) as opened:
        config = uvicorn.Config(
            page, log_config=None, access_log=False, lifespan="off", proxy_headers=False, server_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        serving = Thread(target=server.run, args=([opened],), name="page", daemon=True)
        serving.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        finally:
            server.should_exit = True
            serving.join(CLOSE_WITHIN)


def listening(host: str, port: int | None) -> socket.socket:
    """Returns a socket that listens on the port. None is the usual one, or any that is free if that is taken."""
    try:
        opened = _listening(host, PORT if port is None else port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        if port is not None:
            raise SettingsError(f"--port {port}: something else listens there") from None
        opened = _listening(host, 0)
    # For the connections, which inherit it: asyncio sets it for sockets of its own only, and without it an answer that
    # is sent in two parts waits 40 ms for the acknowledgement of the first.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return opened


def _listening(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
