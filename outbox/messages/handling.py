"""Defines what all lanes of a consumer share."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from ..client.inbox import Inbox
from ..definition.failed_attempts import OnError, Reports
from ..definition.outcome import Backoff
from ..process.service import Service


class Slots:
    """Bounds how many messages are handled at once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def taken(self, *, alone: bool) -> AsyncIterator[None]:
        """Waits for a slot; with `alone` for all slots, so that no other message is handled at the same time."""
        slots = self._count if alone else 1
        async with self._turn:  # otherwise two that want all slots would wait for each other
            for _ in range(slots):
                await self._free.acquire()
        try:
            yield
        finally:
            for _ in range(slots):
                self._free.release()


@dataclass
class Handling:
    """What a consumer's receivers share: the handler with its options, and counts of messages by outcome.

    `timeout`, in seconds, bounds an async handler.
    """

    inbox: Inbox
    queue: str
    handler: Callable[[Any], Any]
    retry: Backoff
    timeout: float
    slots: Slots
    service: Service
    on_error: tuple[OnError, ...] = ()
    reports: Reports | None = None
    handled: int = 0
    duplicates: int = 0
    parked: int = 0
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_async = inspect.iscoroutinefunction(self.handler)
