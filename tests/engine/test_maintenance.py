"""What a worker does on the side has its share of the time, and no more."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, value
from outbox import Pipeline, Run
from outbox.database import budget
from outbox.engine.inflight import InFlight
from outbox.engine.lane import Lanes
from outbox.engine.maintenance import Maintenance
from outbox.engine.retention import Retention

Conn = psycopg.Connection[Any]


def test_a_look_that_was_dear_is_taken_again_later_unless_somebody_must_know(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LONGEST", 3600.0)  # "later" is not on this machine's account
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"B"})

    @pipeline.stage("work", on="A", to="B")
    async def work(run: Run[Post]) -> None: ...

    deployed(conn, pipeline).submit(conn, "a", Post())
    held = "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL"

    async def go() -> None:
        maintenance = Maintenance(dsn, InFlight(Lanes()), Retention(), lease=30)
        await maintenance.tick()
        conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1")
        maintenance._looks.spent(60)
        await maintenance.tick()
        assert value(conn, held) == 1
        await maintenance.tick(everything=True)
        assert value(conn, held) == 0
        await maintenance.close()

    asyncio.run(go())
