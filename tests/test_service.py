"""Tasks end when they are told to."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from outbox import service


@pytest.mark.parametrize("steps", range(5))
def test_a_task_whose_wait_ends_as_it_is_cancelled_ends_all_the_same(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "AGAIN", 0.01)

    async def loop(event: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), 60)
                event.clear()

    async def cancelled_in_that_moment() -> None:
        event = asyncio.Event()
        task = asyncio.create_task(loop(event))
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        await asyncio.wait_for(service.cancel(task), 10)
        assert task.cancelled()

    asyncio.run(cancelled_in_that_moment())


def test_a_task_that_fails_or_has_ended_is_no_trouble() -> None:
    async def fail() -> None:
        raise ValueError

    async def some() -> None:
        ended, failing = asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(fail())
        await ended
        await service.cancel(ended, failing)

    asyncio.run(some())
