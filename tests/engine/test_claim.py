"""The claim: no job twice, none before its time, and what may kill its worker one at a time."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from kit.pooler import way
from kit.servers import DEADLINE, wait_for
from outbox import Retry, Run, Worker
from outbox.engine import claim
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]


def test_two_workers_never_claim_the_same_job(conn: Conn, connect: Callable[..., Conn]) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(1000)))
    got: list[list[str]] = []

    def work(conn: Conn) -> None:
        row = conn.execute(
            "INSERT INTO outbox.workers (name, stages, lease) VALUES ('t', '{}', '1h') RETURNING id"
        ).fetchone()
        assert row is not None
        mine: list[str] = []
        while True:
            lane = Lane(pipeline.stages["work"], 100)
            statement, params = claim.request(row[0], [(lane, 7)], 0, careful=True)
            claim.receive(row[0], {("p", "work"): lane}, conn.execute(statement, params).fetchall())
            if not lane.waiting:
                break
            assert len(lane.waiting) <= 7
            mine += [job.workflow_id for job in lane.waiting]
        got.append(mine)

    threads = [threading.Thread(target=work, args=[connect()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    everything = list(itertools.chain(*got))
    assert len(everything) == len(set(everything)) == 1000


def test_jobs_that_may_kill_their_worker_are_claimed_one_at_a_time_over_all_stages(conn: Conn) -> None:
    posts = deployed(conn)
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(4)])
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE entity_id IN ('e0', 'e1')")
    conn.execute("UPDATE outbox.jobs SET careful = true, attempt = 3")
    conn.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'test', '{}', '1 hour')")
    lanes = [(Lane(stage, 10), 10) for stage in posts.stages.values()]
    stages = set()
    for _ in range(4):
        rows = conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall()
        assert [row[6] for row in rows] == [True], "one, whatever there is"
        stages.add(rows[0][1])
        assert conn.execute(*claim.request(1, lanes, 0, careful=False)).fetchall() == [], "none beside it"
    assert stages == {"enrich", "decide"}
    assert conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall() == []


def test_a_scheduled_job_is_not_claimed_before_its_time(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        raise Retry(after=3600)

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit(conn, "a", Post())
    worker = drain(pipeline, dsn)
    assert (worker.counts.retried, worker.counts.dead) == (1, 0)
    assert value(conn, "SELECT scheduled FROM outbox.overview WHERE status = 'NEW'") == 1
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    assert drain(pipeline, dsn).counts.retried == 1


def test_a_stage_that_this_worker_does_not_serve_is_left_for_others(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    drain(posts, dsn, stages=["decide", "posts.act"])
    assert status_of(conn, "a") == "RECEIVED"
    drain(posts, dsn, stages=["enrich"])
    assert status_of(conn, "a") == "ENRICHED"


def test_what_may_kill_its_worker_waits_for_the_commit_of_the_one_before(
    conn: Conn, dsn: str, connect: Callable[..., Conn]
) -> None:
    """Else the one before dies with it, though its handler has done all its work."""
    begun: list[str] = []

    async def work(run: Run[Post]) -> None:
        begun.append(run.entity_id)

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, [("a", Post()), ("b", Post())])
    conn.execute("UPDATE outbox.jobs SET careful = true")
    holder = connect(autocommit=False)
    holder.execute("SELECT FROM outbox.workflow_states FOR UPDATE")  # neither of them can be committed
    worker = Worker(pipeline, **way(dsn))
    thread = threading.Thread(target=lambda: asyncio.run(worker.run()))
    thread.start()
    try:
        wait_for(lambda: begun)
        pipeline.submit(conn, "later", Post())
        wait_for(lambda: "later" in begun, what="it claims on")
        assert len(begun) == 2
        holder.commit()
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 3)
    finally:
        worker.stop()
        thread.join(DEADLINE)
