"""Threads that pull: nothing put in is left lying, one that hangs holds up no other, results come in the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Sequence

import pytest

from kit.servers import DEADLINE, wait_for
from outbox.process import pulling, threads
from outbox.process.pulling import Pulling


def test_all_that_is_put_in_is_worked_off_whatever_the_timing() -> None:
    """Items come one by one as others end, so threads go idle and are called again all the time."""
    results: list[int] = []
    in_loop: set[int] = set()

    async def main() -> None:
        items = iter(range(3_000))
        over = asyncio.Event()

        def collect(ended: Sequence[tuple[int, int]]) -> None:
            in_loop.add(threading.get_ident())
            for _, result in ended:
                results.append(result)
                if (following := next(items, None)) is not None:
                    pulls.put(following)
            if len(results) == 3_000:
                over.set()

        def work(item: int) -> int:
            time.sleep(0.0001 * (item % 3 == 0))
            return -item

        pulls = Pulling("test", work, collect)
        for _ in range(4):
            pulls.put(next(items))
        await asyncio.wait_for(over.wait(), DEADLINE)
        pulls.close()

    asyncio.run(main())
    assert sorted(results) == sorted(-item for item in range(3_000))
    assert in_loop == {threading.get_ident()}


def test_a_thread_whose_item_another_one_has_taken_is_called_again() -> None:
    both, worked = threading.Barrier(2), threading.Event()

    async def main() -> None:
        def work(item: str) -> None:
            if item == "at once":
                both.wait(DEADLINE)
            elif item == "first":
                pulls.put("second")  # wakes the other thread, but this one comes back sooner: it has the interpreter
            else:
                worked.set()

        def rest() -> None:
            wait_for(lambda: len(pulls._idle) == 2, what="both threads are idle")

        # The loop is never left, so nothing is handed over: that would let the other thread go first.
        pulls = Pulling("test", work, lambda ended: None)
        for _ in range(2):
            pulls.put("at once")
        rest()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(DEADLINE)
        try:
            pulls.put("first")
            assert worked.wait(DEADLINE)
        finally:
            sys.setswitchinterval(interval)
        rest()
        worked.clear()
        pulls.put("third")
        assert worked.wait(DEADLINE)
        pulls.close()

    asyncio.run(main())


def test_what_takes_long_holds_up_nothing_and_has_a_thread_of_its_own() -> None:
    go_on = threading.Event()
    seen: list[str] = []

    async def main() -> None:
        others, all_over = asyncio.Event(), asyncio.Event()

        def collect(ended: Sequence[tuple[str, str]]) -> None:
            seen.extend(result for _, result in ended)
            if len(seen) == 3:
                others.set()
            if len(seen) == 5:
                all_over.set()

        def work(item: str) -> str:
            if item.startswith("long"):
                go_on.wait(DEADLINE)
            return item

        pulls = Pulling("test", work, collect)
        for item in ("long 1", "a", "long 2", "b", "c"):
            pulls.put(item)
        await asyncio.wait_for(others.wait(), DEADLINE)
        assert sorted(seen) == ["a", "b", "c"]
        go_on.set()
        await asyncio.wait_for(all_over.wait(), DEADLINE)
        pulls.close()

    asyncio.run(main())
    assert sorted(seen) == ["a", "b", "c", "long 1", "long 2"]


def test_short_work_is_done_by_few_threads_and_reaches_the_loop_in_bunches() -> None:
    bunches: list[int] = []
    used: set[int] = set()

    async def main() -> None:
        over = asyncio.Event()

        def collect(ended: Sequence[tuple[int, None]]) -> None:
            bunches.append(len(ended))
            if sum(bunches) == 200:
                over.set()

        pulls = Pulling("test", lambda item: used.add(threading.get_ident()), collect)
        for item in range(200):
            pulls.put(item)
        await asyncio.wait_for(over.wait(), DEADLINE)
        pulls.close()

    asyncio.run(main())
    assert len(bunches) < 200
    assert len(used) < 200


def test_without_any_thread_it_is_said_and_with_one_that_works_the_item_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Scarce(threading.Thread):
        left = 0

        def start(self) -> None:
            if self.name == "outbox test":
                if not Scarce.left:
                    raise RuntimeError("can't start new thread")
                Scarce.left -= 1
            super().start()

    monkeypatch.setattr(pulling.threading, "Thread", Scarce)  # type: ignore[attr-defined]
    began, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    async def main() -> None:
        over = asyncio.Event()

        def collect(ended: Sequence[tuple[str, str]]) -> None:
            seen.extend(result for _, result in ended)
            if len(seen) == 2:
                over.set()

        def work(item: str) -> str:
            began.set()
            go_on.wait(DEADLINE)
            return item

        pulls = Pulling("test", work, collect)
        with pytest.raises(threads.NoThread, match="can't start"):
            pulls.put("refused")
        Scarce.left = 1
        pulls.put("first")
        began.wait(DEADLINE)
        pulls.put("second")
        go_on.set()
        await asyncio.wait_for(over.wait(), DEADLINE)
        pulls.close()

    asyncio.run(main())
    assert seen == ["first", "second"]


def test_closed_it_ends_its_idle_threads_and_drops_what_comes_late() -> None:
    go_on = threading.Event()
    seen: list[str] = []

    def alive() -> int:
        return sum(thread.name == "outbox closing" for thread in threading.enumerate())

    async def main() -> None:
        first = asyncio.Event()

        def collect(ended: Sequence[tuple[str, str]]) -> None:
            seen.extend(result for _, result in ended)
            first.set()

        def work(item: str) -> str:
            if item == "late":
                go_on.wait(DEADLINE)
            return item

        pulls = Pulling("closing", work, collect)
        pulls.put("late")
        pulls.put("early")
        await asyncio.wait_for(first.wait(), DEADLINE)
        pulls.close()
        await asyncio.to_thread(wait_for, lambda: alive() == 1, what="the idle thread ends")
        go_on.set()
        await asyncio.to_thread(wait_for, lambda: alive() == 0, what="the other one ends when it returns")

    asyncio.run(main())
    assert seen == ["early"]
