"""From where a stage's jobs are looked for: what is dead and can't be removed yet is not walked over again and again."""

from __future__ import annotations

import pytest

from kit.pipelines import Post
from outbox import Pipeline, Run
from outbox.database.budget import LONGEST, SHARE
from outbox.engine.lane import FULL_SCAN, Lane


@pytest.fixture
def lane() -> Lane:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"B"})

    @pipeline.stage("work", on="A", to="B")
    async def work(run: Run[Post]) -> None: ...

    return Lane(pipeline.stages["work"], 10)


def scan(lane: Lane, now: float, asked: int, ids: list[int], cost: float = 0.0) -> int:
    """Return from where it began."""
    start = lane.scan_from(now)
    lane.scanned(start, asked, ids, cost)
    return start


def test_where_there_is_plenty_each_scan_goes_on_where_the_last_one_ended(lane: Lane) -> None:
    assert scan(lane, 0.0, 3, [1, 2, 3]) == 0
    assert scan(lane, 0.1, 3, [4, 5, 6]) == 3
    assert scan(lane, 0.2, 3, [7, 8, 9]) == 6
    assert scan(lane, FULL_SCAN, 3, [2, 10, 11]) == 0, "what committed late is found within a second"
    assert scan(lane, FULL_SCAN + 0.1, 3, []) == 11


def test_where_little_is_left_each_scan_is_a_full_one_as_long_as_that_is_cheap(lane: Lane) -> None:
    assert scan(lane, 0.0, 10, [5], cost=0.001) == 0
    assert scan(lane, 0.001 * SHARE, 10, [4], cost=0.001) == 0, "it has committed late"


def test_a_full_scan_that_is_dear_has_its_share_of_the_time_and_no_more(lane: Lane) -> None:
    assert scan(lane, 0.0, 10, [5], cost=0.5) == 0
    for moment in (0.1, 1.0, 0.5 * SHARE - 0.1):
        assert scan(lane, moment, 10, [], cost=0.001) == 5
        assert not lane.complete
    assert scan(lane, 0.5 * SHARE, 10, []) == 0
    assert lane.complete


def test_a_full_scan_that_took_minutes_is_not_put_off_for_an_hour(lane: Lane) -> None:
    """It was the server that was frozen, or this process."""
    assert scan(lane, 0.0, 10, [5], cost=200.0) == 0
    assert scan(lane, LONGEST - 0.1, 10, []) == 5
    assert scan(lane, LONGEST, 10, []) == 0


def test_what_came_back_is_looked_for_at_once(lane: Lane) -> None:
    scan(lane, 0.0, 10, [5], cost=0.5)
    lane.scan_all()
    assert scan(lane, 0.1, 10, [3]) == 0
