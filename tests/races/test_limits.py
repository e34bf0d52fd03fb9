"""Claims within limits, and all that may meet them, in every order of their steps: never one too many, and no deadlock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.interleave import Actor, Explore, Scene
from kit.pipelines import Post, deployed, one_stage, value
from kit.scenes import DEPLOY, MAINTENANCE, WORKER, books_are_right, holding
from outbox import Pipeline
from outbox.definition import deploy
from outbox.engine import claim, commit
from outbox.engine.apart import ALL
from outbox.engine.job import Failed, Finished, Job
from outbox.engine.lane import Lane
from outbox.engine.pacing import ServerClock

Conn = psycopg.Connection[Any]
RUNNING = "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL"

IN_ORDER = """
SELECT j.partition, j.priority, w.metadata, r.partition
FROM outbox.jobs AS j JOIN outbox.workflow_states AS w ON w.id = j.workflow_id
JOIN outbox.routes AS r ON r.pipeline = j.pipeline AND r.status = j.status
WHERE (j.owner IS NULL OR j.partition IS NULL)
  AND (j.partition IS DISTINCT FROM CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(w.metadata, r.partition) END
       OR j.priority IS DISTINCT FROM CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(w.metadata, r.priority) END)
"""


class Queue:
    """Four jobs of a limited stage, of two customers; one of them, a's, is worker 1's. Acts return what they won."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any]) -> None:
        for table in ("workflow_states", "workers", "partition_rates"):
            conn.execute(f"DELETE FROM outbox.{table}".encode())
        conn.execute("UPDATE outbox.limits SET next_at = '-infinity', served = ''")
        conn.execute(MAINTENANCE["counts_fold"], {})
        self.conn, self.pipeline = conn, pipeline
        pipeline.submit_many(conn, [(name, Post(content=name[0])) for name in ("a1", "a2", "b1", "b2")])
        self.first, self.second = self.worker(), self.worker()
        (self.job,) = self.claimed(conn, self.first, 1)

    def worker(self) -> int:
        row = self.conn.execute(
            WORKER["worker_register"], {"name": "t", "stages": [], "lease": 3600, "release": None}
        ).fetchone()
        assert row is not None
        return int(row[0])

    def claimed(self, conn: Conn, worker: int, most: int = 10, stages: tuple[str, ...] = ("work",)) -> list[Job]:
        lanes = {("p", name): Lane(self.pipeline.stages[name], 10) for name in stages}
        asked = [(lane, most) for lane in lanes.values()]
        rows = conn.execute(*claim.request_limited(worker, asked, 0.0, careful=True)).fetchall()
        claim.receive_limited(worker, lanes, rows, ServerClock(), 0.0)
        return [job for lane in lanes.values() for job in lane.waiting]

    def claiming(self, worker: int, most: int = 10) -> Callable[[Conn], list[str]]:
        return lambda conn: [job.entity_id for job in self.claimed(conn, worker, most)]

    def finish(self, conn: Conn) -> list[str]:
        return ["ended"] if conn.execute(*commit.finish([(self.job, Finished("DONE", None, []))])).fetchall() else []

    def fail(self, conn: Conn) -> list[str]:
        return ["ended"] if conn.execute(*commit.fail([(self.job, Failed("boom", 0.0))])).fetchall() else []

    def give_back(self, conn: Conn) -> list[str]:
        return ["ended"] if conn.execute(*commit.release([self.job])).fetchall() else []

    def sweep(self, conn: Conn) -> list[str]:
        conn.execute(MAINTENANCE["workers_bury"], {"dead": [self.first], "leases": False, "now": None})
        conn.execute(MAINTENANCE["jobs_sweep"], {"limit": 100, **ALL})
        return []

    def by_hand(self, conn: Conn) -> list[str]:
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id IN ('a1', 'a2')")
        return []

    def edit(self, conn: Conn) -> list[str]:
        conn.execute(
            "UPDATE outbox.workflow_states SET metadata = '{\"content\": \"b\"}' WHERE entity_id IN ('a1', 'a2')"
        )
        return []


def limited(**limits: Any) -> Pipeline[Any]:
    return one_stage(lambda run: None, **limits)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"concurrency": 2}, 2),
        ({"concurrency": 1, "partition": "content"}, 2),
        ({"concurrency": 3, "partition": "content", "total_concurrency": 2}, 2),
        ({"rate": "2/hour"}, 2),
        ({"rate": "1/hour", "partition": "content"}, 2),
    ],
)
def test_claims_that_meet_take_no_more_than_one_alone(
    conn: Conn, explore: Explore, limits: dict[str, Any], most: int
) -> None:
    pipeline = deployed(conn, limited(**limits))
    rate = "rate" in limits and "partition" not in limits

    def scene() -> Scene:
        queue = Queue(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            taken = [entity for each in outcomes.values() for entity in each]
            assert len(taken) == len(set(taken)) == (0 if rate else most - 1), "the one before took the only moment"
            assert value(conn, RUNNING) == 1 + len(taken)
            books_are_right(conn)

        workers = {"one": queue.first, "two": queue.second, "three": queue.worker()}
        return Scene({name: holding(queue.claiming(worker)) for name, worker in workers.items()}, check)

    explore(scene)


@pytest.mark.parametrize("act", ["finish", "fail", "give_back", "sweep", "by_hand", "edit"])
@pytest.mark.parametrize("limits", [{"concurrency": 1}, {"concurrency": 1, "partition": "content"}])
def test_who_claims_while_a_job_ends_takes_its_place_or_none(
    conn: Conn, explore: Explore, limits: dict[str, Any], act: str
) -> None:
    pipeline = deployed(conn, limited(**limits))
    partitions = 2 if "partition" in limits else 1

    def scene() -> Scene:
        queue = Queue(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            assert value(conn, RUNNING) <= partitions
            books_are_right(conn)
            assert conn.execute(IN_ORDER).fetchall() == []

        claims = {"one": holding(queue.claiming(queue.second)), "two": holding(queue.claiming(queue.worker()))}
        return Scene({act: holding(getattr(queue, act)), **claims}, check)

    explore(scene)


def test_claims_of_two_stages_in_either_order_do_not_wait_in_a_circle(conn: Conn, explore: Explore) -> None:
    pipeline = limited(concurrency=2)
    pipeline.stage("again", on="MOVED", to="DONE", concurrency=2)(lambda run: None)
    deployed(conn, pipeline)

    def scene() -> Scene:
        queue = Queue(conn, pipeline)
        queue.by_hand(conn)

        def claiming(worker: int, *stages: str) -> Callable[[Conn], Any]:
            return holding(lambda conn: [job.entity_id for job in queue.claimed(conn, worker, 10, stages)])

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert sorted(map(len, outcomes.values())) == [0, 4]

        there, back = claiming(queue.first, "work", "again"), claiming(queue.second, "again", "work")
        return Scene({"there": there, "back": back}, check)

    explore(scene)


NEWER = {
    "fewer": {"concurrency": 1, "partition": "content"},
    "no limits": {},
    "other partitions": {"concurrency": 2, "partition": "content", "priority": "content"},
}


@pytest.mark.parametrize("act", ["claim", "finish", "edit", "by_hand", "submit"])
@pytest.mark.parametrize("newer", NEWER)
def test_a_deploy_of_other_limits_and_what_is_done_meanwhile(
    conn: Conn, explore: Explore, newer: str, act: str
) -> None:
    """Every job has the place that the routes give it, though it was made or changed while they changed."""
    old, new = limited(concurrency=3), limited(**NEWER[newer])

    def scene() -> Scene:
        deploy.deploy(conn, old)
        queue = Queue(conn, old)

        def submit(conn: Conn) -> list[str]:
            return ["made"] * old.submit(conn, "c1", Post(content="c")).created

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert conn.execute(IN_ORDER).fetchall() == []
            assert outcomes["deploy"][-1].startswith("stage work: 3 at once -> ")

        acts = {"claim": queue.claiming(queue.second), "submit": submit}
        other = holding(acts[act] if act in acts else getattr(queue, act))
        return Scene(
            {"deploy": Actor(lambda conn: deploy.deploy(conn, new), steps=DEPLOY + "|outbox.limits"), act: other}, check
        )

    explore(scene)
