"""Runs plain functions in threads that take them one after the other, and hands over their results in bunches.

A hop to a thread and back for each call (`threads.py`) costs several times what a short function does. A thread here
takes the next item as soon as it has ended one. Before it begins one, it sees to it that another thread is on its way
for the items that still wait, so a function that takes long holds up no other one.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

from .forks import leave_if_forked
from .threads import NoThread, leave

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pulling(Generic[Item, Result]):
    """Calls `work(item)` in threads named after `name`, and `collect` in the loop with what has ended.

    `work` must not raise. There are as many threads as items have been in it at once. They are daemons: a thread can't
    be interrupted, and one that hangs must not keep the process.
    """

    def __init__(
        self, name: str, work: Callable[[Item], Result], collect: Callable[[Sequence[tuple[Item, Result]]], None]
    ) -> None:
        self._name = f"outbox {name}"
        self._loop = asyncio.get_running_loop()
        self._work, self._collect = work, collect
        self._lock = threading.Lock()  # of all that follows
        self._waiting: deque[Item] = deque()
        self._ended: list[tuple[Item, Result]] = []
        self._idle: list[SimpleQueue[None]] = []
        self._threads = 0
        self._coming = False  # a thread is on its way, and has not looked at what waits
        self._collecting = False  # the loop has been asked to collect, and has not begun
        self._closed = False

    def put(self, item: Item) -> None:
        """Has a thread take an item. Raises NoThread, and forgets the item, if no thread ever would."""
        with self._lock:
            self._waiting.append(item)
            try:
                self._call_a_thread()
            except RuntimeError as error:  # can't start new thread
                if not self._threads:
                    self._waiting.remove(item)
                    raise NoThread(str(error)) from None

    def close(self) -> None:
        """Ends the idle threads. The others end when their functions return, and their results are dropped."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            for idle in self._idle:
                idle.put(None)

    def _call_a_thread(self) -> None:
        """Wakes or starts a thread, if an item waits and none is on its way yet."""
        if not self._waiting or self._coming:
            return
        if self._idle:
            self._idle.pop().put(None)
        else:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._threads += 1
        self._coming = True

    def _run(self) -> None:
        woken: SimpleQueue[None] = SimpleQueue()
        coming = True
        while not self._closed:
            with self._lock:
                if coming:
                    self._coming = coming = False
                item = self._waiting.popleft() if self._waiting else None
                if item is None:
                    self._idle.append(woken)
                else:
                    with suppress(RuntimeError):  # no thread can be started: this one takes the next item, too
                        self._call_a_thread()
            if item is None:
                woken.get()
                coming = True
                continue
            result = self._work(item)
            leave_if_forked()
            self._end(item, result)
            del item, result  # don't keep them alive until the next item
        leave()

    def _end(self, item: Item, result: Result) -> None:
        with self._lock:
            self._ended.append((item, result))
            asked, self._collecting = self._collecting, True
        if not asked:
            with suppress(RuntimeError):  # the loop is closed, and nothing awaits the result
                self._loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
            self._collecting = False
        if not self._closed:
            self._collect(ended)
