"""Attempts free their slots, whenever they are taken away."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from kit.pipelines import Post
from kit.servers import DEADLINE
from outbox import Pipeline, Run
from outbox.database.connection_group import ConnectionGroup
from outbox.engine.attempt import Attempts
from outbox.engine.inflight import InFlight
from outbox.engine.job import Job
from outbox.engine.lane import Lanes
from outbox.engine.release import Releaser


def test_a_handler_that_is_taken_away_before_its_first_step_is_not_called_and_frees_its_slot() -> None:
    """Jobs may be taken away in the same turn of the loop in which they are started."""
    called: list[str] = []
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})

    @pipeline.stage("work", on="A", to="B")
    async def work(run: Run[Post]) -> None:
        called.append(run.entity_id)

    @pipeline.stage("plain", on="B", to="C")
    def plain(run: Run[Post]) -> None:
        called.append(run.entity_id)

    async def main() -> None:
        lanes = Lanes.of([pipeline], None, 2)
        inflight = InFlight(lanes)
        nothing = cast("Any", SimpleNamespace())  # it uses no connection
        attempts = Attempts("", inflight, Releaser(nothing, inflight), nothing, group=ConnectionGroup(), pooled=False)
        for name, lane in (("work", lanes["p", "work"]), ("plain", lanes["p", "plain"])):
            lane.add(Job(lane.stage, 1, 1, name, 1, 1, False, name, min(lane.stage.on), 1, '{"content": "x"}'))
            attempts.start(lane)
        inflight.interrupt("another worker has them")
        while inflight.handlers_run():
            await asyncio.sleep(0.001)
        assert [lane.attempts for lane in lanes.values()] == [0, 0]
        assert attempts.handlers.left() == []
        assert not inflight.busy()
        await attempts.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
    assert "work" not in called
