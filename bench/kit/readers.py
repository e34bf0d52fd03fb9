"""Reads an outbox in a thread and drops the messages, in two ways: as the relay does, and by SELECT … SKIP LOCKED."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import psycopg

from outbox.messages.log import Log, Window
from outbox.messages.parking import Parking
from outbox.messages.relay import Relay
from outbox.messages.target import Outgoing, Parked, Target

BATCH = 500
PAUSE = 0.02

PLAIN_TABLE = """
    CREATE TABLE plain_outbox (
        id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        message_id uuid NOT NULL DEFAULT outbox.uuid7(),
        topic      text NOT NULL,
        key        text,
        payload    jsonb,
        created_at timestamptz NOT NULL DEFAULT now()
    )
"""
TAKE = f"""
    SELECT id, message_id::text, topic, key, payload::text, created_at FROM plain_outbox
    ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM plain_outbox WHERE id = ANY (%s)"


@dataclass
class Taken:
    """What a reader has taken: how many messages, and how many ms it took to find and fetch each batch."""

    messages: int = 0
    fetches: list[float] = field(default_factory=list)

    def add(self, messages: int, asked: float) -> None:
        self.messages += messages
        self.fetches.append((time.monotonic() - asked) * 1000)


class TimedLog(Log):
    """The relay's log, which also records when a window was requested."""

    asked = 0.0

    async def cut(self) -> Window | None:
        self.asked = time.monotonic()
        return await super().cut()


class Nowhere(Target):
    """A target that accepts everything at once."""

    def __init__(self, dsn: str, taken: Taken) -> None:
        super().__init__("nowhere")
        self._taken = taken
        self.log = TimedLog(dsn, "default", self.name, self.lease)

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: Mapping[str, bool]) -> Parked:
        self._taken.add(len(messages), self.log.asked)
        return {}

    async def close(self) -> None: ...


class TimedRelay(Relay):
    """The unchanged relay, with a timed log."""

    def __init__(self, dsn: str, target: Nowhere) -> None:
        super().__init__(dsn, target)
        self._log, self._parking = target.log, Parking(target.log, target, False)


@contextmanager
def relay(dsn: str, taken: Taken) -> Iterator[None]:
    """Reads outbox.messages in windows."""
    made = TimedRelay(dsn, Nowhere(dsn, taken))
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_until_complete, args=(made.run(),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(made.stop)
        thread.join()
        loop.close()


@contextmanager
def skip_locked(dsn: str, taken: Taken) -> Iterator[None]:
    """Reads plain_outbox: locks the first rows that no other session has locked, deletes them, commits."""
    over = Event()

    def take(conn: psycopg.Connection) -> None:
        with conn.transaction():
            asked = time.monotonic()
            if rows := conn.execute(TAKE).fetchall():
                taken.add(len(rows), asked)
                conn.execute(DELETE, ([row[0] for row in rows],))
        if not rows:
            over.wait(PAUSE)

    def loop() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            while not over.is_set():
                take(conn)

    thread = Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
