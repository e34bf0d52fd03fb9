"""Threads for plain functions, such as the handlers of one stage: as many as are called at once.

A thread can't be interrupted. A function that hangs keeps its thread and its slot, and the process ends without it:
the threads are daemons. A function sees the context variables of the one that calls it here.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from .forks import leave_if_forked


class NoThread(Exception):
    """The system has no thread to spare: nothing was called."""


class _Call(NamedTuple):
    context: contextvars.Context
    function: Callable[[], Any]
    answer: asyncio.Future[Any]


class Threads:
    """Calls functions in threads named after `name`, each in an idle thread or in a new one.

    `held`: a caller that is cancelled waits on until its function has returned, or the threads are closed.
    """

    def __init__(self, name: str, *, held: bool = True) -> None:
        self._name = f"outbox {name}"
        self._loop = asyncio.get_running_loop()
        self._idle: list[SimpleQueue[_Call | None]] = []
        self._held, self._closed = held, False

    async def call(self, function: Callable[[], Any]) -> Any:
        """Calls a function and waits until it has returned.

        NoThread if the function was not called.
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
        """Ends the idle threads; the others end with what they do."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _work(self, calls: SimpleQueue[_Call | None]) -> None:
        while (call := calls.get()) is not None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = call.context.run(call.function)
            except StopIteration as raised:  # which a future can't hold
                error = RuntimeError(f"{call.function!r} raised StopIteration")
                error.__cause__ = raised
            except BaseException as raised:
                error = raised
            leave_if_forked()
            with suppress(RuntimeError):  # the loop is closed, and nothing waits for the answer
                self._loop.call_soon_threadsafe(self._answer, calls, call.answer, result, error)
            del call, result, error  # what a function was given is not kept until the next call

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
