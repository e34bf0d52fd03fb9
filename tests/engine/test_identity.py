"""What an asynchronous failover gives twice names nothing alone: the server that took over lacks the last seconds.

Rows and claims of these seconds are gone, and sequences and counters give the same values again, while processes still
know them from before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg

from kit.pipelines import Post, deployed, one_stage, status_of, value
from kit.pooler import way
from kit.servers import DEADLINE, wait_for
from outbox import Pipeline, Run, Worker
from outbox.database import statements
from outbox.engine import claim, commit
from outbox.engine.inflight import InFlight
from outbox.engine.job import Finished, Job
from outbox.engine.lane import Lane, Lanes
from outbox.engine.lease import Lease

Conn = psycopg.Connection[Any]
SESSIONS = b"""SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'outbox %' AND pid <> pg_backend_pid()"""
REGISTER = statements.load("lease")["worker_register"]


class Scene:
    """A worker whose handler waits for `gate`, and what a failover does to it. `runs` are the attempts of its handler."""

    def __init__(self, conn: Conn, dsn: str) -> None:
        self.conn, self.gate, self.runs, self.cancelled = conn, asyncio.Event(), list[int](), 0
        self.order: list[str] = []

        async def work(run: Run[Post]) -> Post:
            self.runs.append(run.attempt)
            self.order.append("begun")
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.order.append("ended")
            return Post(content="of the first")

        self.posts: Pipeline[Any] = deployed(conn, one_stage(work))
        self.posts.submit(conn, "a", Post())
        self.worker = Worker(self.posts, **way(dsn), lease=6)

    def fail_over(self, *, worker: bool) -> None:
        """Set the database back to before the claim, and with `worker` to before the worker's registration."""
        if worker:
            self.conn.execute("DELETE FROM outbox.workers")
            self.conn.execute("SELECT setval(pg_get_serial_sequence('outbox.workers', 'id'), 1, false)")
        self.conn.execute("UPDATE outbox.jobs SET owner = NULL, claimed_at = NULL, attempt = 0")

    def claimed(self, worker: int) -> Job:
        lane = Lane(self.posts.stages["work"], 1)
        statement, params = claim.request(worker, [(lane, 1)], 0, careful=False)
        claim.receive(worker, {("p", "work"): lane}, self.conn.execute(statement, params).fetchall())
        return next(iter(lane.waiting))

    async def play(self, act: Callable[[], Any], until: Callable[[], bool]) -> Any:
        """Run the worker, and `act` while its handler waits; stop it when `until` holds."""
        running = asyncio.create_task(self.worker.run())
        await seen(lambda: self.runs == [1])
        done = act()
        await seen(until)
        self.worker.stop()
        await asyncio.wait_for(running, DEADLINE)
        return done


def registered(conn: Conn) -> int:
    row = conn.execute(REGISTER, {"name": "heir", "stages": [], "lease": 3600, "release": None}).fetchone()
    assert row is not None
    return int(row[0])


async def seen(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_for, condition)


def test_no_worker_gets_the_identity_of_another_by_a_failover(conn: Conn, dsn: str) -> None:
    async def main() -> None:
        scene = Scene(conn, dsn)

        def act() -> Job:
            with conn.transaction():
                scene.fail_over(worker=True)
                return scene.claimed(registered(conn))

        job = await scene.play(act, lambda: scene.worker.counts.lost == 1)
        assert scene.cancelled == 1, "the first has seen that it is not registered any more"
        assert value(conn, "SELECT array_agg(name) FROM outbox.workers") == ["heir"], "each has left its own row only"
        assert value(conn, "SELECT owner FROM outbox.jobs") == job.owner, "and freed its own jobs only"
        assert conn.execute(*commit.finish([(job, Finished("DONE", '{"content": "of the heir"}', []))])).fetchall()
        assert (status_of(conn, "a"), scene.runs) == ("DONE", [1]), "nothing has run a third time"

    asyncio.run(main())


def test_what_was_claimed_before_a_failover_writes_nothing_after_it(conn: Conn, dsn: str) -> None:
    """The heir has the same job with the same number of attempts: only its identity differs."""

    async def main() -> None:
        scene = Scene(conn, dsn)

        def act() -> Job:
            with conn.transaction():
                scene.fail_over(worker=True)
                job = scene.claimed(registered(conn))
            scene.gate.set()
            return job

        job = await scene.play(act, lambda: scene.worker.counts.lost == 1)
        assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "hello"
        assert value(conn, "SELECT owner FROM outbox.jobs") == job.owner

    asyncio.run(main())


def test_an_attempt_whose_claim_a_failover_has_lost_ends_before_the_job_runs_again(conn: Conn, dsn: str) -> None:
    """The worker's row has survived, and its id, the job's and the attempt are the same again: the fence can't tell."""

    async def main() -> None:
        scene, loop = Scene(conn, dsn), asyncio.get_running_loop()

        def act() -> None:
            with conn.transaction():
                # No session of before reads the jobs as they are then, and none of after as they were.
                conn.execute("LOCK TABLE outbox.jobs")
                conn.execute(SESSIONS)
                scene.fail_over(worker=False)

        def run_again() -> bool:
            if scene.runs == [1, 1] and len(scene.order) == 3:
                act()
                scene.order.append("set back again")
            if scene.runs == [1, 1, 1]:
                loop.call_soon_threadsafe(scene.gate.set)
            return scene.worker.counts.done == 1

        await scene.play(act, run_again)
        again = ["begun", "set back again", "ended"]
        assert scene.order == ["begun", "ended", *again, "begun", "ended"], "one was ended, and then the next has begun"
        assert (scene.cancelled, scene.worker.counts.lost, scene.runs) == (2, 2, [1, 1, 1])

    asyncio.run(main())


def test_an_identity_that_is_taken_is_drawn_again(conn: Conn, dsn: str) -> None:
    conn.execute("CREATE SEQUENCE outbox.drawn")
    conn.execute("ALTER TABLE outbox.workers ALTER COLUMN id SET DEFAULT nextval('outbox.drawn')")
    conn.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'another', '{}', '1 hour')")

    async def main() -> int:
        lease = Lease(dsn, InFlight(Lanes()), seconds=30, listen=True)
        running = asyncio.create_task(lease.run())
        await asyncio.wait_for(lease.registered.wait(), DEADLINE)
        running.cancel()
        await asyncio.wait({running})
        worker = lease.id
        await lease.leave()
        return worker

    assert asyncio.run(main()) == 2
    assert value(conn, "SELECT array_agg(name) FROM outbox.workers") == ["another"]
