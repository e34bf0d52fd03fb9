"""Asks once for all open pages: after a change, every page that shows the same asks the same at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

KEPT = 3.0
"""Seconds for which an answer is for others, too: a change that is seen meanwhile ends it at once."""

MOST = 500
"""Answers that are kept, at most: they hold what pages show."""


class Shared(Generic[T]):
    """Keeps answers for a moment, each by what was asked."""

    def __init__(self, kept: float = KEPT) -> None:
        self._kept = kept
        self._asked: dict[Hashable, tuple[float, asyncio.Future[T]]] = {}

    async def get(self, key: Hashable, ask: Coroutine[Any, Any, T]) -> T:
        """Returns what `ask` returns, or the answer to the same question if it was asked a moment ago."""
        at, answer = self._asked.get(key, (0.0, None))
        loop = asyncio.get_running_loop()
        if (
            answer is None or answer.cancelled() or time.monotonic() - at > self._kept
            or not (answer.done() or answer.get_loop() is loop)
        ):  # fmt: skip
            if len(self._asked) >= MOST:
                self.forget()
            answer = loop.create_task(ask)
            self._asked[key] = time.monotonic(), answer
        else:
            ask.close()
        try:
            # The page that asked first may be closed before there is an answer, while others wait for it.
            return await asyncio.shield(answer) if not answer.done() else answer.result()
        except Exception:
            self._asked.pop(key, None)  # what has failed is asked again
            raise

    def forget(self) -> None:
        """Has everything asked again."""
        self._asked.clear()
