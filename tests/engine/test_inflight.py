"""The jobs in flight: each is in one place, and each question about them has one answer."""

from __future__ import annotations

import asyncio

import pytest

from kit.pipelines import Post
from outbox import Pipeline, Run
from outbox.engine.batch import BATCH
from outbox.engine.inflight import MOST_UNCOMMITTED, InFlight
from outbox.engine.job import Failed, Finished, Job
from outbox.engine.lane import Lane, Lanes

DONE = Finished("B", None, [])


class Desk:
    """One lane with two slots, and jobs for it."""

    def __init__(self, *, draining: bool = False) -> None:
        pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"B"})

        @pipeline.stage("work", on="A", to="B")
        async def work(run: Run[Post]) -> None: ...

        self.lane = Lane(pipeline.stages["work"], 2)
        self.inflight = InFlight(Lanes({("p", "work"): self.lane}), draining=draining)

    def claimed(self, name: str, *, careful: bool = False) -> Job:
        job = Job(self.lane.stage, 1, 1, name, 1, 1, careful, name, "A", 1, "{}")
        self.lane.add(job)
        return job

    def started(self, name: str, *, careful: bool = False) -> Job:
        self.claimed(name, careful=careful)
        (job,) = self.inflight.start(self.lane)
        assert job.workflow_id == name
        return job

    def returned(self, job: Job) -> None:
        self.lane.leave([job])
        self.inflight.handler_returned()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_job_is_held_from_its_claim_until_its_outcome_is_in_the_database(desk: Desk) -> None:
    job = desk.claimed("a")
    assert desk.inflight.held() == ["a"]
    assert desk.inflight.start(desk.lane) == [job]
    assert desk.inflight.held() == ["a"]
    desk.inflight.end(job, DONE)
    desk.returned(job)
    assert desk.inflight.held() == ["a"]
    batch = desk.inflight.take_batch()
    assert desk.inflight.held() == ["a"]
    desk.inflight.committed(batch)
    assert desk.inflight.held() == []


def test_a_late_job_is_held_until_it_is_released(desk: Desk) -> None:
    job = desk.claimed("a")
    desk.inflight.missed(desk.lane, [desk.lane.waiting.popleft()])
    assert desk.inflight.late() == [job]
    assert desk.inflight.held() == ["a"]
    assert desk.inflight.busy()
    desk.inflight.released([job])
    assert desk.inflight.held() == []
    assert not desk.inflight.busy()


def test_a_job_that_timed_out_has_ended_though_its_handler_keeps_the_slot(desk: Desk) -> None:
    job = desk.started("a")
    desk.inflight.end(job, Failed("too slow", 1.0))
    job.take_away("timed out")
    assert desk.inflight.held() == ["a"]
    desk.inflight.committed(desk.inflight.take_batch())
    assert desk.inflight.held() == []
    assert desk.inflight.handlers_run()
    assert desk.lane.room() == 1
    desk.inflight.end(job, DONE)
    assert desk.inflight.uncommitted == 0, "a handler that returns too late ends nothing"


def test_waiting_jobs_do_not_make_it_busy_and_running_ones_do(desk: Desk) -> None:
    job = desk.claimed("a")
    assert not desk.inflight.busy()
    desk.inflight.start(desk.lane)
    assert desk.inflight.busy()
    desk.inflight.end(job, DONE)
    desk.returned(job)
    assert desk.inflight.busy(), "its outcome is not committed"
    desk.inflight.committed(desk.inflight.take_batch())
    assert not desk.inflight.busy()


def test_it_is_drained_when_nothing_is_in_flight_and_the_last_scan_found_nothing(desk: Desk) -> None:
    assert not desk.inflight.drained(), "no scan was made"
    desk.lane.scan.found(0, 10, [], 0.0)
    assert desk.inflight.drained()
    desk.claimed("a")
    assert not desk.inflight.drained()
    desk.inflight.drop_waiting()
    assert desk.inflight.drained()
    desk.inflight.wakeups.wake()
    assert not desk.inflight.drained(), "a job may have come since"
    desk.inflight.wakeups.claiming()
    assert desk.inflight.drained()


def test_a_drain_asks_once_more_after_what_was_running_has_ended() -> None:
    desk = Desk(draining=True)
    desk.lane.scan.found(0, 10, [], 0.0)
    job = desk.started("a")
    desk.inflight.wakeups.claiming()
    desk.inflight.end(job, Failed("no", 0.0))
    desk.returned(job)
    desk.inflight.committed(desk.inflight.take_batch())
    assert not desk.inflight.busy()
    assert not desk.inflight.drained(), "it may be due again at once"


def test_a_job_that_may_kill_the_process_is_alone_until_its_outcome_is_committed(desk: Desk) -> None:
    assert desk.inflight.may_take_careful()
    job = desk.started("a", careful=True)
    assert not desk.inflight.may_take_careful()
    desk.inflight.end(job, DONE)
    desk.returned(job)
    assert not desk.inflight.may_take_careful()
    batch = desk.inflight.take_batch()
    assert not desk.inflight.may_take_careful()
    desk.inflight.committed(batch)
    assert desk.inflight.may_take_careful()


def test_a_batch_has_one_outcome_of_a_workflow_and_no_more_than_one_statement_takes(desk: Desk) -> None:
    for number in range(BATCH):
        desk.inflight.end(desk.claimed(f"w{number}"), DONE)
    desk.inflight.end(desk.claimed("w0"), DONE)
    first = desk.inflight.take_batch()
    assert len(first) == BATCH
    assert desk.inflight.ended == 1
    second = desk.inflight.take_batch()
    assert [job.workflow_id for job in second.jobs] == ["w0"]
    assert desk.inflight.uncommitted == BATCH + 1
    assert desk.inflight.committing
    desk.inflight.committed(first)
    desk.inflight.committed(second)
    assert not desk.inflight.committing


def test_what_is_lost_with_the_lease_is_neither_held_nor_committed(desk: Desk) -> None:
    running = desk.started("a")
    desk.claimed("b")
    desk.inflight.wakeups.idle = True
    desk.inflight.lose("the lease was taken away")
    assert running.lost == "the lease was taken away"
    assert desk.inflight.held() == []
    assert desk.inflight.counts.lost == 1
    assert not desk.inflight.wakeups.idle
    desk.inflight.end(running, DONE)
    assert desk.inflight.uncommitted == 0


def test_there_is_room_when_a_slot_is_free_and_not_too_much_is_uncommitted(desk: Desk) -> None:
    async def go() -> None:
        assert await desk.inflight.room() == [(desk.lane, 2)]
        one, _ = desk.started("a"), desk.started("b")
        waiting = asyncio.create_task(desk.inflight.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        desk.returned(one)
        assert await asyncio.wait_for(waiting, 60) == [(desk.lane, 1)]
        for number in range(MOST_UNCOMMITTED + 1):
            desk.inflight.end(Job(desk.lane.stage, 1, 1, f"w{number}", 1, 1, False, "e", "A", 1, "{}"), DONE)
        waiting = asyncio.create_task(desk.inflight.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        desk.inflight.committed(desk.inflight.take_batch())
        assert await asyncio.wait_for(waiting, 60) == [(desk.lane, 1)]

    asyncio.run(go())
