"""Races that need more rows than an interleaving has: batches in opposite orders, claims by the hundred.

What two or three can do to one workflow, in every order of their steps, is in test_interleavings.py.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from pipelines import Post, deployed, value
from servers import wait_for
from test_worker import one_stage

from outbox.engine import claim, commit
from outbox.engine.job import Finished
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]


def test_opposite_orders_of_a_bulk_update_and_a_batch_do_not_deadlock(conn: Conn, connect: Callable[..., Conn]) -> None:
    """F25: the batch locks in the order of ids; whoever updates in id order too never meets it crosswise."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(50)))
    row = conn.execute(
        "INSERT INTO outbox.workers (name, stages, lease) VALUES ('t', '{}', '1h') RETURNING id"
    ).fetchone()
    assert row is not None
    lane = Lane(pipeline.stages["work"], 100)
    statement, params = claim.request(row[0], [(lane, 50)], 0, careful=True)
    claim.receive(row[0], {("p", "work"): lane}, conn.execute(statement, params).fetchall())
    jobs = [(job, Finished("DONE", None, [])) for job in reversed(lane.waiting)]
    one, two = connect(autocommit=False), connect()
    ids = sorted(job.workflow_id for job, _ in jobs)
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[10]])
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(two.execute(*commit.finish(jobs)).fetchall()))
    thread.start()
    wait_for(
        lambda: value(
            conn, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", two.info.backend_pid
        )
    )
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[20]])
    one.commit()
    thread.join(20)
    assert len(out[0]) == 48, "the two that were edited are refused, the others commit"


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
        thread.join(30)
    everything = list(itertools.chain(*got))
    assert len(everything) == len(set(everything)) == 1000


def test_jobs_that_may_kill_their_worker_are_claimed_one_at_a_time_over_all_stages(conn: Conn) -> None:
    posts = deployed(conn)
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(4)])
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE entity_id IN ('e0', 'e1')")
    conn.execute("UPDATE outbox.jobs SET careful = true, attempt = 3")
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('test', '{}', '1 hour')")
    lanes = [(Lane(stage, 10), 10) for stage in posts.stages.values()]
    stages = set()
    for _ in range(4):
        rows = conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall()
        assert [row[6] for row in rows] == [True], "one, whatever there is"
        stages.add(rows[0][1])
        assert conn.execute(*claim.request(1, lanes, 0, careful=False)).fetchall() == [], "none beside it"
    assert stages == {"enrich", "decide"}
    assert conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall() == []
