"""What an exception of a user's function means: its text, and when the function is called again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from outbox import Backoff, Reject, Retry
from outbox.definition.outcome import failure

RETRY = Backoff(first=2, factor=3, attempts=3, jitter=0)


class Unprintable(Reject):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(("attempt", "delay"), [(1, 2.0), (2, 6.0), (3, None)])
def test_an_exception_is_tried_again_by_the_back_off(attempt: int, delay: float | None) -> None:
    found = failure(ValueError("one\0"), RETRY, attempt)
    assert found == ("ValueError: one\N{REPLACEMENT CHARACTER}", None if delay is None else pytest.approx(delay))


@pytest.mark.parametrize(("after", "delay"), [(7, 7.0), (timedelta(minutes=1), 60.0), (0, 0.0), (None, 2.0)])
def test_retry_chooses_the_delay(after: Any, delay: float) -> None:
    assert failure(Retry(after, "later"), RETRY, 1) == ("later", pytest.approx(delay))


def test_retry_counts_as_an_attempt() -> None:
    assert failure(Retry(7, "later"), RETRY, 3) == ("later", None)


@pytest.mark.parametrize("after", ["soon", float("nan"), -1, 1e300, True])
def test_a_wish_to_wait_that_is_no_time_is_ignored(after: Any) -> None:
    error = Retry(7, "later")
    error.after = after
    assert failure(error, RETRY, 1) == ("later", pytest.approx(2.0))


def test_reject_gives_up_at_once_with_its_reason() -> None:
    assert failure(Reject("no customer of ours"), RETRY, 1) == ("no customer of ours", None)


def test_a_reason_that_has_no_text_is_described() -> None:
    assert failure(Unprintable(), RETRY, 1).error == "Unprintable: (its text can't be had: RuntimeError)"
