"""The frame: what ends a service, how long it may take, what is closed; and that tasks end when they are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from outbox import OutboxError
from outbox.process import forks, service
from outbox.process.service import Delays, Service, Trouble, side_by_side
from outbox.process.signals import on_signals


@pytest.mark.parametrize("steps", range(5))
def test_a_task_whose_wait_ends_as_it_is_cancelled_ends_all_the_same(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "CANCEL_AGAIN", 0.01)

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


def test_a_task_that_fails_or_has_ended_can_be_cancelled() -> None:
    async def fail() -> None:
        raise ValueError

    async def some() -> None:
        ended, failing = asyncio.create_task(asyncio.sleep(0)), asyncio.create_task(fail())
        await ended
        await service.cancel(ended, failing)

    asyncio.run(some())


class Made:
    """A service whose steps are told in the order in which they happen."""

    def __init__(self) -> None:
        self.service = Service("Worker")
        self.told: list[str] = []

    async def loop(self, name: str = "loop") -> None:
        """Runs until it is cancelled."""
        try:
            await asyncio.sleep(60)
        finally:
            self.told.append(f"{name} ended")

    def closing(self, name: str, error: BaseException | None = None) -> Callable[[], Awaitable[None]]:
        async def close() -> None:
            self.told.append(f"{name} closed")
            if error is not None:
                raise error

        return close

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]], *closing: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(asyncio.wait_for(self.service.run(main, *closing), 20))


@pytest.fixture
def made() -> Made:
    return Made()


async def fail() -> None:
    raise ValueError("a defect")


def later(*steps: Callable[[], Any]) -> None:
    """Takes steps, one after the other, when all that is ready has run."""
    for n, step in enumerate(steps):
        asyncio.get_running_loop().call_later(0.05 * (n + 1), step)


# Loops side by side.


def test_loops_beside_end_with_the_main_one(made: Made) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        made.told.append("main ended")

    made.run(lambda: side_by_side(main(), made.loop()))
    assert made.told == ["main ended", "loop ended"]


def test_the_first_failure_ends_all(made: Made) -> None:
    with pytest.raises(ValueError, match="a defect"):
        made.run(lambda: side_by_side(made.loop("main"), made.loop(), fail()), made.closing("link"))
    assert made.told == ["main ended", "loop ended", "link closed"]


def test_of_two_failures_at_once_that_of_the_loop_beside_is_raised(made: Made) -> None:
    async def lost() -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        made.run(lambda: side_by_side(fail(), lost()))


def test_a_loop_that_ends_by_itself_ends_nothing_else(made: Made) -> None:
    async def main() -> None:
        await asyncio.sleep(0.05)
        made.told.append("main ended")

    made.run(lambda: side_by_side(main(), asyncio.sleep(0)))
    assert made.told == ["main ended"]


# Stop.


def test_a_stop_ends_what_has_no_grace_and_the_loops_beside_go_on_while_the_rest_ends(made: Made) -> None:
    async def main() -> None:
        later(made.service.stop)
        assert not await made.service.until_stop(made.loop("claiming"))
        assert await made.service.until_stop(asyncio.sleep(0.05), grace=60)
        made.told.append("handlers ended")

    made.run(lambda: side_by_side(main(), made.loop("heartbeat")))
    assert made.told == ["claiming ended", "handlers ended", "heartbeat ended"]


def test_what_has_not_ended_within_the_grace_time_is_cancelled(made: Made) -> None:
    async def main() -> None:
        later(made.service.stop)
        assert not await made.service.until_stop(made.loop("handler"), grace=0.1)
        assert made.service.stopping
        assert not made.service.hurried

    made.run(main)
    assert made.told == ["handler ended"]


def test_the_grace_time_counts_from_the_stop(made: Made) -> None:
    async def main() -> None:
        made.service.stop()
        made.service._stopped_at -= 1000
        assert not await made.service.until_stop(made.loop("handler"), grace=999)

    made.run(main)


def test_a_second_stop_ends_at_once(made: Made) -> None:
    async def main() -> None:
        later(made.service.stop, made.service.stop)
        assert not await made.service.until_stop(made.loop("handler"), grace=3600)
        assert made.service.hurried

    made.run(main)


def test_a_stop_before_the_run_counts(made: Made) -> None:
    async def main() -> None:
        assert not await made.service.until_stop(made.loop("claiming"))

    for _ in range(2):  # and in another loop, too
        made.service.stop()
        made.run(main)


def test_a_stop_is_over_with_its_run(made: Made) -> None:
    async def main() -> None:
        assert await made.service.until_stop(asyncio.sleep(0))

    made.service.stop()
    made.run(lambda: asyncio.sleep(0))
    assert not made.service.stopping
    made.run(main)


def test_one_run_at_a_time(made: Made) -> None:
    async def main() -> None:
        with pytest.raises(OutboxError, match="this Worker is running already; make another one"):
            await made.service.run(fail)
        assert made.service.running

    made.run(main)
    assert not made.service.running


def test_what_ends_by_itself_needs_no_stop_and_its_failure_is_raised(made: Made) -> None:
    async def main() -> None:
        assert await made.service.until_stop(asyncio.sleep(0))
        await made.service.until_stop(fail())

    with pytest.raises(ValueError, match="a defect"):
        made.run(main)


def test_a_sleep_ends_with_a_stop(made: Made) -> None:
    async def main() -> None:
        assert await made.service.sleep(0.01), "go on"
        later(made.service.stop)
        assert not await made.service.sleep(3600)

    made.run(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop(made: Made, number: signal.Signals) -> None:
    async def main() -> None:
        on_signals(made.service.stop)
        later(lambda: os.kill(os.getpid(), number))
        await made.service.stopped()

    made.run(main)


def test_outside_the_main_thread_signals_are_left_alone(made: Made) -> None:
    async def main() -> None:
        on_signals(made.service.stop)

    async def threaded() -> None:
        await asyncio.to_thread(lambda: asyncio.run(main()))

    asyncio.run(threaded())


# The end.


def test_everything_is_closed_in_turn_whatever_fails(made: Made) -> None:
    closing = [
        made.closing("first", ValueError()),
        made.closing("second", asyncio.CancelledError()),
        made.closing("third"),
    ]
    with pytest.raises(asyncio.CancelledError):
        made.run(fail, *closing)
    assert made.told == ["first closed", "second closed", "third closed"]


def test_what_fails_as_it_is_closed_does_not_hide_a_failure_of_the_run(made: Made) -> None:
    with pytest.raises(ValueError, match="a defect"):
        made.run(fail, made.closing("link", LookupError()))


def test_what_does_not_close_in_time_is_left(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CLOSE_WITHIN", 0.01)
    made.run(lambda: asyncio.sleep(0), lambda: made.loop("stuck"), made.closing("link"))
    assert made.told == ["stuck ended", "link closed"]


def test_a_service_that_was_made_before_a_fork_is_refused(made: Made) -> None:
    made.service._pid = os.getpid() + 1
    with pytest.raises(OutboxError, match=r"^this Worker has run before a fork; make one in the process that runs it$"):
        made.run(fail, made.closing("link"))
    assert made.told == []


def test_a_loop_is_guarded_until_the_last_of_its_services_has_ended() -> None:
    async def main() -> None:
        loop, first, second = asyncio.get_running_loop(), Service("Worker"), Service("Consumer")

        async def outer() -> None:
            await second.run(lambda: asyncio.sleep(0))
            assert loop in forks._serving

        await first.run(outer)
        assert loop not in forks._serving

    asyncio.run(main())


# Delays and troubles.


def test_delays_double_up_to_the_longest_until_they_are_reset() -> None:
    delays = Delays(1, 5)
    for longest in (1, 2, 4, 5, 5):
        assert longest / 2 <= delays.next() <= longest
    assert delays.grown
    delays.reset()
    assert not delays.grown
    assert delays.next() <= 1


def test_a_trouble_is_said_when_it_changes() -> None:
    said: list[str | None] = []
    trouble = Trouble(said.append)
    for what in (None, "away", "away", "full", None, None, "full"):
        trouble.set(what)
        assert trouble.now == what
    assert said == ["away", "full", None, "full"]
