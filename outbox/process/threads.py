"""Runs plain functions, such as the handlers of one stage, in as many threads as there are concurrent calls.

A thread can't be interrupted. A function that hangs keeps its thread and its slot; the process can still end, because
the threads are daemons. A function sees the context variables of its caller here.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from .forks import leave_if_forked

LEAVING: list[Callable[[], object]] = []
"""What a framework does in each thread of ours that ends: see outbox/django/apps.py."""

ENDING: list[Callable[[], Awaitable[object]]] = []
"""What a framework does in the event loop when a worker has ended its handlers."""


class NoThread(Exception):
    """The system can't start another thread: the function was not called."""


class _Call(NamedTuple):
    context: contextvars.Context
    function: Callable[[], Any]
    answer: asyncio.Future[Any]


class Threads:
    """Calls functions in threads named after `name`, each in an idle thread or in a new one.

    `held`: a cancelled caller keeps waiting until its function has returned, or the threads are closed.
    """

    def __init__(self, name: str, *, held: bool = True) -> None:
        self._name = f"outbox {name}"
        self._loop = asyncio.get_running_loop()
        self._idle: list[SimpleQueue[_Call | None]] = []
        self._held, self._closed = held, False

    async def call(self, function: Callable[[], Any]) -> Any:
        """Calls a function and waits until it has returned.

        Raises NoThread if the function was not called.
        """
        answer = self._loop.create_future()
        call = _Call(contextvars.copy_context(), function, answer)
        if self._idle:
            self._idle.pop().put(call)
        else:
            calls: SimpleQueue[_Call | None] = SimpleQueue()
            calls.put(call)
            try:
                threading.Thread(target=self._work, args=(calls,), name=self._name, daemon=True).start()
            except RuntimeError as error:  # can't start new thread
                raise NoThread(str(error)) from None
        while not answer.done():
            try:
                await asyncio.wait((answer,))
            except asyncio.CancelledError:
                if self._closed or not self._held:
                    raise
        return answer.result()

    def close(self) -> None:
        """Ends the idle threads. The others end when their functions return."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _work(self, calls: SimpleQueue[_Call | None]) -> None:
        while (call := calls.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = call.context.run(call.function)
            except StopIteration as raised:  # a future can't hold StopIteration
                error = RuntimeError(f"{call.function!r} raised StopIteration")
                error.__cause__ = raised
            except BaseException as raised:
                error = raised
            leave_if_forked()
            with suppress(RuntimeError):  # the loop is closed, and nothing awaits the answer
                self._loop.call_soon_threadsafe(self._answer, calls, call.answer, result, error)
            del call, result, error  # don't keep a function's arguments alive until the next call
        leave()

    def _answer(
        self, calls: SimpleQueue[_Call | None], answer: asyncio.Future[Any], result: Any, error: BaseException | None
    ) -> None:
        if self._closed:
            calls.put(None)
        else:
            self._idle.append(calls)
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


def leave() -> None:
    """Does in the calling thread, which ends, what frameworks do then."""
    for each in LEAVING:
        each()
