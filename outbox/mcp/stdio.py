"""Serves one client on standard input and output.

Standard output is for the protocol only. While it serves, the SDK sends what else is written there to standard error.
Here is what it leaves open: what an application prints while it is imported, what Python buffers until the SDK has
given standard output back, and signals that come while a thread of the SDK waits for input.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from threading import Thread
from types import FrameType
from typing import Any

from mcp.server import MCPServer

from ..errors import SettingsError


@contextmanager
def unbuffered() -> Iterator[None]:
    """Is a block in which nothing printed waits for a time when standard output is the protocol's again.

    Raises SettingsError if standard input or output is closed.
    """
    if sys.stdin is None or sys.stdout is None:
        raise SettingsError("standard input or output is closed: the client that starts this talks by them")
    sys.stdout.flush()
    # As `python -u` does it.
    raw = io.FileIO(1, "wb", closefd=False)
    with redirect_stdout(io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)):
        yield


@contextmanager
def diverted() -> Iterator[None]:
    """Is a block in which all that is written to standard output goes to standard error."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def serve(server: MCPServer[Any]) -> None:
    """Serves until the client has gone. SIGINT and SIGTERM end it as if it had, with the exit codes of a signal."""
    received: list[int] = []
    ours, theirs = socket.socketpair()
    # A thread that reads can't be interrupted, so it reads from a socket, which can be shut.
    Thread(target=_pass_on, args=(os.dup(0), ours), name="stdin", daemon=True).start()
    os.dup2(theirs.fileno(), 0)
    theirs.close()

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _shut(ours)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run("stdio")
    except* BrokenPipeError:
        pass  # the client has gone without waiting for its answer
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if received:
        sys.exit(128 + received[0])


def _pass_on(client: int, to: socket.socket) -> None:
    """Passes on what a client sends, and its end."""
    with suppress(OSError):
        while data := os.read(client, 65_536):
            to.sendall(data)
    _shut(to)


def _shut(ours: socket.socket) -> None:
    with suppress(OSError):  # it is shut already
        ours.shutdown(socket.SHUT_WR)
