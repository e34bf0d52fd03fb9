"""Tells an application's `on_error` functions of failed attempts, one after the other, beside what runs."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..process.service import cancel, is_cancelled
from ..process.threads import NoThread, Threads
from .reasons import from_handler, log_with

log = logging.getLogger("outbox.service")

MOST = 1_000
"""Most failures that wait to be told. Each holds its traceback, and what the frames in it hold."""

LAST_WITHIN = 2.0
"""Seconds at the end of a run in which the last failures are told."""


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """What has failed, for `on_error`.

    `stage` is a stage of `pipeline`, or a schedule. Of a message, `pipeline` is None and `stage` is the consumer's
    name. `entity_id` is the entity, the time of a tick, or the id of a message. `attempt` counts from 1; it is None for
    a tick. `retry_in` is in seconds, and None if it was the last attempt: the job is dead, or the message parked.
    """

    pipeline: str | None
    stage: str
    entity_id: str
    attempt: int | None
    retry_in: float | None

    @property
    def final(self) -> bool:
        """Whether it is not tried again by itself."""
        return self.retry_in is None


OnError = Callable[[BaseException, FailedAttempt], object]
"""Is called in a thread if it is a plain function, and in the event loop if it is async."""


class Reports:
    """Calls `on_error` functions, one at a time: a slow one delays the others, and nothing else."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[OnError, BaseException, FailedAttempt]] = deque()
        self._dropped = 0
        self._telling: asyncio.Task[None] | None = None
        self._threads: Threads | None = None

    def tell(self, functions: Sequence[OnError], error: BaseException, failed: FailedAttempt) -> None:
        """Has the functions called soon. With too many waiting, the failure is dropped, and their number logged."""
        for function in functions:
            if len(self._waiting) >= MOST:
                self._dropped += 1
                continue
            self._waiting.append((function, error, failed))
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell_all())

    async def close(self) -> None:
        """Tells what still waits, for a short time."""
        if self._telling is not None:
            await asyncio.wait((self._telling,), timeout=LAST_WITHIN)
            await cancel(self._telling)
        if self._waiting:
            log.error("on_error was not told of %s failed attempts before the end", len(self._waiting))
        if self._threads is not None:
            self._threads.close()
            self._threads = None

    async def _tell_all(self) -> None:
        while self._waiting:
            await self._call(*self._waiting.popleft())
            if self._dropped:
                log.error("on_error is too slow: %s failed attempts were not told to it", self._dropped)
                self._dropped = 0

    async def _call(self, function: OnError, error: BaseException, failed: FailedAttempt) -> None:
        try:
            if inspect.iscoroutinefunction(function):
                await function(error, failed)
            else:
                self._threads = self._threads or Threads("on_error", held=False)
                await self._threads.call(partial(function, error, failed))
        except BaseException as raised:
            if isinstance(raised, asyncio.CancelledError) and is_cancelled():
                raise
            told = raised if not isinstance(raised, NoThread) else None
            log_with(log, logging.ERROR, told and from_handler(told), "on_error has failed itself: %r", raised)
