"""Runs a TCP proxy between the engine and a server, which does to connections what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable


class Proxy:
    """Forwards to a port on loopback, in a thread of its own. Any thread may switch faults.

    `silent`: nothing gets through either way, without notice. `half_open`: requests arrive, answers don't. `cutting`:
    each COMMIT is forwarded, and its connection is cut before the answer.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.silent = self.half_open = False
        self.cutting: Callable[[], bool] = lambda: False
        self.cuts = 0
        self._lines: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        self._started.wait(10)

    def cut_all(self) -> None:
        """Resets every connection."""
        self._loop.call_soon_threadsafe(lambda: [line.transport.abort() for line in list(self._lines)])

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._started.set()
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            self._lines |= {writer, back}
            ways = [asyncio.create_task(self._ask(reader, back)), asyncio.create_task(self._answer(there, writer))]
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
                    await asyncio.sleep(0.01)  # let it arrive
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
