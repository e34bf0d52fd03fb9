"""What wakes the claimer, and the maintenance before its next tick."""

from __future__ import annotations

import time

import pytest

from kit.pipelines import Post
from outbox import Pipeline, Run
from outbox.engine.inflight import InFlight
from outbox.engine.job import Finished, Job
from outbox.engine.lane import Lane, Lanes
from outbox.engine.wakeups import Wakeups


@pytest.fixture
def lane() -> Lane:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"B"})

    @pipeline.stage("work", on="A", to="B")
    async def work(run: Run[Post]) -> None: ...

    return Lane(pipeline.stages["work"], 2)


@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("new", ["told of it", "made it"])
def test_a_new_job_may_start_though_the_limits_hold_back_the_others(lane: Lane, idle: bool, new: str) -> None:
    """It may be of another partition. The claimer was not told of the worker's own commit by any notification."""
    inflight = InFlight(Lanes({("p", "work"): lane}))
    wakeups = inflight.wakeups
    wakeups.idle = idle
    lane.held_until = time.monotonic() + 3600
    if new == "made it":
        job = Job(lane.stage, 1, 1, "a", 1, 1, False, "a", "A", 1, "{}")
        inflight.done([(job, Finished("A", None, []))], 1)
    else:
        wakeups.notified("new")
    assert (lane.held_until == 0.0) == idle
    assert wakeups.pending
    wakeups.claiming()
    assert not wakeups.pending


def test_the_nearest_due_time_wakes_maintenance_and_a_later_one_does_not(lane: Lane) -> None:
    wakeups = Wakeups(Lanes({("p", "work"): lane}))
    wakeups.next_due = time.monotonic() + 3600
    wakeups.due_in(7200)
    assert not wakeups.due_sooner.is_set()
    wakeups.due_in(1800)
    assert wakeups.due_sooner.is_set()


def test_only_a_notification_since_the_last_claim_makes_the_claimer_look_from_zero(lane: Lane) -> None:
    wakeups = Wakeups(Lanes({("p", "work"): lane}))
    wakeups.notified("new")
    assert not wakeups.announced
    wakeups.claiming()
    assert wakeups.announced
    wakeups.claiming()
    assert not wakeups.announced
