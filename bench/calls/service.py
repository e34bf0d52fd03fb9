"""Answers the handlers' HTTP requests, after 50 to 500 ms; now and then with 429 or 503. A process of its own.

`python -m bench.calls.service SEED` prints its port. The same seed gives the same answers to the same workflows.
`GET /books` returns for each workflow and step how often it was asked for, and the seconds that the answers took.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import defaultdict
from http import HTTPStatus

from .work import PAUSE

REFUSALS = {HTTPStatus.TOO_MANY_REQUESTS: 0.05, HTTPStatus.SERVICE_UNAVAILABLE: 0.03}
"""The share of the requests that are refused, and how."""

MOST_REFUSALS = 5
"""Of one workflow's step, so that no subject gives up."""

SHORTEST, LONGEST, MOST = 0.05, 0.5, 0.15
"""The seconds that an answer takes: at least, at most, and most often."""

BOOKS = "/books"
WAITING = 4_096
"""Connections that may wait to be accepted."""


def answers(seed: int, path: str) -> list[tuple[HTTPStatus, float]]:
    """Returns the answers to the requests for a path, one after the other: refusals, then 200; and their seconds."""
    chance = random.Random(f"{seed} {path}")
    found: list[tuple[HTTPStatus, float]] = []
    kinds, shares = [*REFUSALS, HTTPStatus.OK], [*REFUSALS.values(), 1 - sum(REFUSALS.values())]
    while not found or found[-1][0] != HTTPStatus.OK:
        (status,) = [HTTPStatus.OK] if len(found) == MOST_REFUSALS else chance.choices(kinds, shares)
        found.append((status, chance.triangular(SHORTEST, LONGEST, MOST)))
    return found


class Service:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._books: dict[str, list[float]] = defaultdict(list)

    async def serve(self) -> None:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, backlog=WAITING)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came = time.monotonic()
        _, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        if path == BOOKS:
            status, body = HTTPStatus.OK, json.dumps(self._books)
        else:
            took = self._books[path]
            planned = answers(self._seed, path)
            status, seconds = planned[min(len(took), len(planned) - 1)]
            number = len(took)
            took.append(0.0)
            await asyncio.sleep(seconds)
            # What the answer has really taken: this process may have been late itself.
            took[number] = time.monotonic() - came
            body = "{}"
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: {len(body)}\r\n"
            f"Retry-After: {PAUSE:g}\r\nConnection: close\r\n\r\n{body}".encode()
        )
        writer.close()


if __name__ == "__main__":
    asyncio.run(Service(int(sys.argv[1])).serve())
