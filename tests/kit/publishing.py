"""A publisher on a thread of its own, and messages for it: for tests that are the broker meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kit.scripted_broker import Message
from kit.servers import DEADLINE
from outbox.messages.rabbitmq.publisher import Publisher
from outbox.messages.target import Lease, Outgoing, Parked
from outbox.process.service import Trouble

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def outgoing(number: int, key: str | None = None, **other: Any) -> Outgoing:
    """Make a message with its number as its body."""
    message = Outgoing(number, f"m{number}", f"t.{number}", key, str(number), None, NOW)
    return replace(message, **other)


def some(*numbers: int, key: str | None = None) -> list[Outgoing]:
    return [outgoing(number, key) for number in numbers]


class Permission(Lease):
    """A relay's lease that is held when the test says so."""

    def __init__(self, is_held: Callable[[], bool]) -> None:
        super().__init__()
        self._is_held = is_held

    def is_held(self) -> bool:
        return self._is_held()


class Sender:
    """A publisher on a thread of its own: the test is the broker meanwhile."""

    def __init__(self, url: str, is_held: Callable[[], bool] = lambda: True, **options: Any) -> None:
        self.troubles: list[str | None] = []
        self.publisher = Publisher(url, source="/test", **options)
        self.publisher.lease = Permission(is_held)
        self.publisher.trouble = Trouble(self.troubles.append)
        self._delivering: list[Future[Parked]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def deliver(self, messages: Sequence[Outgoing], stopped: Sequence[str] = ()) -> Future[Parked]:
        coroutine = self.publisher.deliver(messages, dict.fromkeys(stopped, False))
        self._delivering.append(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        return self._delivering[-1]

    def idle(self) -> bool:
        """Whether no delivery runs, nor the end of one."""

        async def alone() -> bool:
            return len(asyncio.all_tasks()) == 1

        return asyncio.run_coroutine_threadsafe(alone(), self._loop).result(DEADLINE)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.publisher.close(), self._loop).result(DEADLINE)

    def end(self) -> None:
        for delivering in self._delivering:
            delivering.cancel()
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()


def numbers(messages: Sequence[Message]) -> list[int]:
    return [int(message.body) for message in messages]
