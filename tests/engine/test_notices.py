"""When a worker asks to be notified: while notifications are rare, however many jobs come with each."""

from __future__ import annotations

from itertools import accumulate
from random import Random

import pytest

from outbox.engine.notices import BURST, PAUSE_FIRST, PAUSE_LONGEST, PER_SECOND, Notices


def heard(notices: Notices, per_second: float, seconds: float) -> float | None:
    """Lets notifications come at random times; returns when there were too many."""
    random = Random(5)
    times = accumulate(random.expovariate(per_second) for _ in range(int(per_second * seconds)))
    for now in times:
        notices.heard(now)
        if notices.too_many(now):
            return now
    return None


@pytest.mark.parametrize("per_second", [1, 40, 0.8 * PER_SECOND])
def test_rare_notifications_are_never_too_many(per_second: float) -> None:
    assert heard(Notices(), per_second, 100) is None


@pytest.mark.parametrize("per_second", [3 * PER_SECOND, 1_000, 20_000])
def test_many_are_noticed_after_some_more_than_a_burst(per_second: float) -> None:
    ended = heard(Notices(), per_second, 100)
    assert ended is not None
    assert ended * per_second < 2 * BURST


def test_after_too_many_it_does_not_ask_at_once_and_waits_longer_each_time_that_it_was_too_soon() -> None:
    notices, now, pauses = Notices(), 0.0, []
    for _ in range(7):
        assert notices.may_ask(now)
        notices.asked(now)
        notices.stopped(now + 0.1)
        assert not notices.may_ask(now + 0.1)
        now, stopped = next(t for n in range(10_000) if notices.may_ask(t := now + 0.1 + n / 100)), now + 0.1
        pauses.append(round(now - stopped, 1))
    assert pauses == [2.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0]
    assert PAUSE_LONGEST == 16.0
    notices.asked(now)
    notices.stopped(now + 60)
    assert notices.may_ask(now + 60 + PAUSE_FIRST), "it was at rest for longer than it had paused"


def test_what_was_heard_is_forgotten() -> None:
    notices = Notices()
    for _ in range(500):
        notices.heard(10.0)
    assert notices.too_many(10.0)
    assert not notices.too_many(15.0)
