"""TCP proxies before a server, which do to its lines what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Callable


class LossyProxy:
    """Forwards to a Postgres on loopback. It drops the answer to the first message that contains `marker`.

    With `prepared`, it drops the answer to the message after that: psycopg sends a statement's text to prepare it, and
    executes it with the next message.
    """

    def __init__(self, port: int, marker: bytes, *, prepared: bool) -> None:
        self._target = port
        self._marker = marker
        self._prepared = prepared
        self._armed = True
        self.lost = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, contextlib.suppress(OSError):
            losing = marked = False
            while True:
                readable, _, _ = select.select([client, server], [], [])
                if server in readable:
                    data = server.recv(65536)
                    if losing or not data:
                        self.lost += losing
                        return
                    client.sendall(data)
                if client in readable:
                    data = client.recv(65536)
                    if not data:
                        return
                    losing = losing or marked
                    if self._armed and self._marker in data:
                        self._armed = False
                        marked, losing = self._prepared, not self._prepared
                    server.sendall(data)


class Proxy:
    """Forwards to a port on loopback, in a thread of its own. Faults are switched from any thread.

    `target` is the port; another one is that of the lines that are opened afterwards, as with a name that has moved.
    `silent`: nothing gets through either way, and nobody is told. `half_open`: the client's words arrive, the answers
    don't. `cutting`: each COMMIT is forwarded and its line cut before the answer.
    """

    host = "127.0.0.1"

    def __init__(self, target: int) -> None:
        self.target = target
        self.silent = self.half_open = False
        self.cutting: Callable[[], bool] = lambda: False
        self.cuts = 0
        self._lines: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._started.wait(10)

    def cut_all(self) -> None:
        """Reset every line."""
        self._loop.call_soon_threadsafe(lambda: [line.transport.abort() for line in list(self._lines)])

    def close(self) -> None:
        """Reset every line, and take no further ones."""
        self.cut_all()
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._accept, self.host, 0) as server:
            self.port = int(server.sockets[0].getsockname()[1])
            self._started.set()
            await self._closing.wait()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._lines |= {writer, back}
            ways = [asyncio.create_task(self._ask(reader, back)), asyncio.create_task(self._answer(there, writer))]
            with contextlib.suppress(asyncio.CancelledError):  # it closes
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            self._lines -= {writer, back}
            back.transport.abort()
        writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._wait_while(lambda: self.silent)
                back.write(data)
                await back.drain()
                if b"COMMIT" in data and self.cutting():
                    self.cuts += 1
                    await asyncio.sleep(0.01)  # that it arrives
                    return

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(65536):
                await self._wait_while(lambda: self.silent or self.half_open)
                writer.write(data)
                await writer.drain()

    async def _wait_while(self, condition: Callable[[], bool]) -> None:
        while condition():
            await asyncio.sleep(0.05)
