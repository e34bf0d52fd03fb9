"""Where scans for jobs start: dead rows that can't be removed yet are not walked over again and again."""

from __future__ import annotations

import pytest

from outbox.database.budget import LONGEST, SHARE
from outbox.engine.scan_mark import FULL_SCAN, ScanMark


@pytest.fixture
def mark() -> ScanMark:
    return ScanMark()


def scan(mark: ScanMark, now: float, asked: int, ids: list[int], cost: float = 0.0) -> int:
    """Returns the id that it started at."""
    start = mark.start(now)
    mark.found(start, asked, ids, cost)
    return start


def test_where_there_is_plenty_each_scan_goes_on_where_the_last_one_ended(mark: ScanMark) -> None:
    assert scan(mark, 0.0, 3, [1, 2, 3]) == 0
    assert scan(mark, 0.1, 3, [4, 5, 6]) == 3
    assert scan(mark, 0.2, 3, [7, 8, 9]) == 6
    assert scan(mark, FULL_SCAN, 3, [2, 10, 11]) == 0, "what committed late is found within a second"
    assert scan(mark, FULL_SCAN + 0.1, 3, []) == 11


def test_where_little_is_left_each_scan_is_a_full_one_as_long_as_that_is_cheap(mark: ScanMark) -> None:
    assert scan(mark, 0.0, 10, [5], cost=0.001) == 0
    assert scan(mark, 0.001 * SHARE, 10, [4], cost=0.001) == 0, "it has committed late"


def test_a_full_scan_that_is_dear_has_its_share_of_the_time_and_no_more(mark: ScanMark) -> None:
    assert scan(mark, 0.0, 10, [5], cost=0.5) == 0
    for moment in (0.1, 1.0, 0.5 * SHARE - 0.1):
        assert scan(mark, moment, 10, [], cost=0.001) == 5
        assert not mark.complete
    assert scan(mark, 0.5 * SHARE, 10, []) == 0
    assert mark.complete


def test_a_full_scan_that_took_minutes_is_not_put_off_for_an_hour(mark: ScanMark) -> None:
    """It was the server that was frozen, or this process."""
    assert scan(mark, 0.0, 10, [5], cost=200.0) == 0
    assert scan(mark, LONGEST - 0.1, 10, []) == 5
    assert scan(mark, LONGEST, 10, []) == 0


def test_what_came_back_is_looked_for_at_once(mark: ScanMark) -> None:
    scan(mark, 0.0, 10, [5], cost=0.5)
    mark.reset()
    assert scan(mark, 0.1, 10, [3]) == 0
