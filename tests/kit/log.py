"""Drives a relay's log step by step, and writes into the children of its ring."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import psycopg

from kit.pipelines import value
from outbox.messages.log import Log, Window
from outbox.messages.target import Lease, Outgoing

Conn = psycopg.Connection[Any]
WRITE = "INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, %s, '{}')"


class Reader:
    """One relay's log, driven step by step by a test that has no event loop of its own."""

    def __init__(self, dsn: str, name: str = "default") -> None:
        self.runner = asyncio.Runner()
        self.log = Log(dsn, name, "test", Lease())

    def do(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(step)

    def begin(self) -> Window | None:
        self.do(self.log.connect())
        return self.do(self.log.take_over())  # type: ignore[no-any-return]

    def read(self, window: Window) -> list[Outgoing]:
        async def all_of_it() -> list[Outgoing]:
            return [message async for part in self.log.read(window) for message in part]

        return self.do(all_of_it())  # type: ignore[no-any-return]

    def next(self) -> list[str]:
        """Cuts a window, reads it, and moves the cursor past it; returns its topics."""
        window = self.do(self.log.cut())
        if window is None:
            return []
        messages = self.read(window)
        self.do(self.log.advance(0, len(messages), {}, done=True))
        return [message.topic for message in messages]

    def close(self) -> None:
        self.do(self.log.close())
        self.runner.close()


def fill(conn: Conn, start: int, count: int = 3) -> None:
    """Writes messages from a given id on, which chooses their child of the ring."""
    conn.execute("SELECT setval('outbox.message_ids', %s, false)", (start,))
    for n in range(count):
        conn.execute(WRITE, (f"t{start + n}", "a"))


def sizes(conn: Conn) -> list[int]:
    return [value(conn, f"SELECT count(*) FROM outbox.messages_{n}") for n in range(4)]
