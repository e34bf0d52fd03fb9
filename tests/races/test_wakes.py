"""A job and a worker that goes to sleep, in every order of their steps: the worker finds it, or is told of it.

The claimer is the engine's own. It stands still where it would sleep, so what it does next is known: it looks again at
once, it is notified, or its next poll is near.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kit.interleave import Explore, Played, Scene
from kit.pipelines import Post, deployed
from kit.scenes import MAINTENANCE, WORKER, holding
from outbox import Pipeline, Run
from outbox.database.link import Link
from outbox.engine import claimer, commit
from outbox.engine.apart import ALL
from outbox.engine.claimer import POLL_FIRST, Claimer
from outbox.engine.inflight import InFlight
from outbox.engine.job import Failed, Finished, Job
from outbox.engine.lane import Lanes
from outbox.engine.lease import Lease
from outbox.engine.wakeups import Wakeups

Conn = psycopg.Connection[Any]


def two_stages() -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="A", final={"C"})
    pipeline.stage("first", on="A", to="B")(_work)
    pipeline.stage("second", on="B", to="C")(_work)
    return pipeline


async def _work(run: Run[Any]) -> None: ...


class Asleep(Exception):
    """The claimer would sleep now, for so many seconds."""


class Awake(Wakeups):
    """The wake-ups of a worker that stands still where it would sleep."""

    async def until_work(self, seconds: float) -> bool:
        if self.pending:
            return True
        raise Asleep(seconds)


class Session(Link):
    """A link whose connection is the actor's."""

    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.connections, self._actor = 1, conn

    async def execute(self, statement: bytes, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        cursor = await self._actor.execute(statement, params)
        return await cursor.fetchall() if cursor.description else []


def registered(conn: Conn, stages: list[str]) -> int:
    ((worker,),) = conn.execute(
        WORKER["worker_register"], {"name": "w", "stages": stages, "lease": 3600, "release": None}
    ).fetchall()
    return int(worker)


class Rested:
    """A worker with a row, its lanes, and a session that hears what it would be notified of."""

    def __init__(self, conn: Conn, dsn: str, pipeline: Pipeline[Any], *, idle: bool = False) -> None:
        self.conn, self.pipeline = conn, pipeline
        self.inflight = InFlight(Lanes.of([pipeline], None, None))
        self.inflight.wakeups = Awake(self.inflight.lanes)
        self.lease = Lease(dsn, self.inflight, seconds=3600, listen=True)
        stages = [lane.stage.queue for lane in self.inflight.lanes.values()]
        self.id = registered(conn, stages)
        self.lease.id, self.inflight.wakeups.idle = self.id, idle
        conn.execute("UPDATE outbox.workers SET idle = %s WHERE id = %s", (idle, self.id))
        conn.execute(f"LISTEN outbox_{self.id}".encode())
        self.slept = 0.0

    async def goes_to_sleep(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Claims until there is nothing, and goes to sleep."""
        self.lease.registered.set()
        link = Session(conn)
        claims = Claimer(link, self.lease, self.inflight, None)  # type: ignore[arg-type]
        try:
            while not self.jobs():
                await claims.turn(self.inflight.lanes.with_room())
                await claims.rest()
        except Asleep as asleep:
            (self.slept,) = asleep.args

    def jobs(self) -> list[Job]:
        return self.inflight.lanes.waiting()

    def told(self) -> list[str]:
        """Returns what it has been notified of since the last question."""
        self.conn.execute("SELECT 1")
        return [notify.payload for notify in self.conn.notifies(timeout=0) if notify.channel == f"outbox_{self.id}"]


@pytest.fixture
def rested(conn: Conn, dsn: str) -> Iterator[Callable[..., Rested]]:
    pipeline = deployed(conn, two_stages())

    def rested(**options: Any) -> Rested:
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        conn.execute("UNLISTEN *")
        return Rested(conn, dsn, options.pop("pipeline", pipeline), **options)

    yield rested
    conn.execute("UNLISTEN *")


def a_submit_is_not_missed(explore: Explore, rested: Callable[..., Rested], **options: Any) -> list[Played]:
    """Plays a submit beside a worker that goes to sleep; fails if the worker would only find it by chance."""
    learnt: list[tuple[bool, bool, float]] = []

    def scene() -> Scene:
        worker = rested(**options)
        submit = holding(lambda conn: worker.pipeline.submit(conn, "e", Post()).created)

        def check(outcomes: dict[str, Any]) -> None:
            learnt.append((bool(worker.jobs()), bool(worker.told()), worker.slept))

        return Scene({"worker": worker.goes_to_sleep, "submit": submit}, check)

    played = explore(scene)
    for each, (found, told, slept) in zip(played, learnt, strict=True):
        steps = each.schedule.split()
        looked = [n for n, name in enumerate(steps) if name == "worker"]
        begun, committed = (n for n, name in enumerate(steps) if name == "submit")
        flagged = -1 if options.get("idle") else looked[:2][-1]
        if committed < looked[-1]:
            assert found, f"it was there before the last look: {each.schedule}"
        elif begun > flagged:
            assert told, f"it came after the worker had asked to be told: {each.schedule}"
        else:
            assert slept <= POLL_FIRST, f"it was under way when the worker asked: {each.schedule}"
    return played


@pytest.mark.parametrize("idle", [False, True], ids=["it asks to be told", "it has asked before"])
def test_a_job_that_comes_while_the_worker_goes_to_sleep(
    explore: Explore, rested: Callable[..., Rested], idle: bool
) -> None:
    played = a_submit_is_not_missed(explore, rested, idle=idle)
    assert len(played) == (3 if idle else 10), [each.schedule for each in played]


async def _sleeps_at_once(self: Claimer) -> None:
    """Goes to sleep without the second look."""
    if not self._inflight.wakeups.idle:
        await self._set_idle(True)
    await self._inflight.wakeups.until_work(self._delay)


async def _does_not_ask(self: Claimer) -> None:
    self._inflight.wakeups.idle = True
    await self._inflight.wakeups.until_work(POLL_FIRST)


async def _sleeps_long(self: Claimer) -> None:
    """Sleeps as one that has been asleep for long, though it has just asked to be told."""
    if not self._inflight.wakeups.idle:
        await self._set_idle(True)
        return
    await self._inflight.wakeups.until_work(claimer.IDLE_POLL)


@pytest.mark.parametrize("rest", [_sleeps_at_once, _does_not_ask, _sleeps_long])
def test_a_worker_that_loses_a_wake_up_is_caught(
    explore: Explore, rested: Callable[..., Rested], rest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Claimer, "rest", rest)
    with pytest.raises(AssertionError, match=r"it was there|it came after|it was under way"):
        a_submit_is_not_missed(explore, rested)


def test_a_job_that_the_worker_has_made_itself(explore: Explore, rested: Callable[..., Rested]) -> None:
    """It is not notified: it looks again because it has committed."""

    def scene() -> Scene:
        worker = rested(idle=True)
        batch = claimed(worker)

        def finish(conn: Conn) -> None:
            conn.execute(*commit.finish(batch))
            conn.commit()
            worker.inflight.done(batch, 1)

        def check(outcomes: dict[str, Any]) -> None:
            assert worker.jobs() or worker.inflight.wakeups.pending
            assert worker.told() == []

        return Scene({"worker": worker.goes_to_sleep, "commit": finish}, check)

    explore(scene)


def claimed(worker: Rested, *, by: int | None = None) -> list[tuple[Job, Finished]]:
    """Submits a workflow, claims its job for the worker, and returns how it ends."""
    worker.pipeline.submit(worker.conn, "e", Post())
    rows = worker.conn.execute(
        "UPDATE outbox.jobs SET owner = %s, attempt = 1, claimed_at = now() WHERE stage = 'first'"
        " RETURNING id, workflow_id::text, entered",
        [by or worker.id],
    ).fetchall()
    worker.told()
    stage = worker.pipeline.stages["first"]
    return [
        (Job(stage, by or worker.id, id, workflow, entered, 1, False, "e", "A", 1, "{}"), Finished("B", None, []))
        for id, workflow, entered in rows
    ]


# Who is told of what.


def test_another_workers_commit_notifies(rested: Callable[..., Rested]) -> None:
    worker = rested(idle=True)
    worker.conn.execute(*commit.finish(claimed(worker, by=registered(worker.conn, []))))
    assert worker.told() == ["new"]


def test_a_child_that_the_worker_has_started_notifies_it(rested: Callable[..., Rested]) -> None:
    """Nothing else would make it look: it knows only the statuses that its own jobs end in."""
    worker = rested(idle=True)
    ((job, _),) = claimed(worker)
    child = {"pipeline": "p", "entity": "child", "data": "{}", "cancel": None}
    worker.conn.execute(*commit.finish([(job, Finished("B", None, [], {"spawn": [child]}))]))
    assert worker.told() == ["new"]


def test_a_change_beside_the_end_of_the_job_notifies_the_worker(rested: Callable[..., Rested]) -> None:
    """A handler has made it through its connection, in the transaction that its worker commits."""
    worker = rested(idle=True)
    batch = claimed(worker)
    with worker.conn.transaction():
        worker.conn.execute(*commit.mark_transaction(batch[0][0]))
        worker.pipeline.submit(worker.conn, "f", Post())
        worker.conn.execute(*commit.finish(batch, marked=True))
    assert worker.told() == ["new"]


def test_jobs_that_come_back_are_told_of_as_such(rested: Callable[..., Rested]) -> None:
    """Their ids are old, so that a look at what is new would not find them."""
    worker = rested(idle=True)
    ((job, _),) = claimed(worker)
    worker.conn.execute(*commit.fail([(job, Failed("not yet", 0.001))]))
    worker.conn.execute("UPDATE outbox.jobs SET run_at = now() - interval '1 second'")
    worker.conn.execute(MAINTENANCE["jobs_promote_due"], {"now": None, "limit": 10, **ALL})
    assert worker.told() == ["back"]
    worker.conn.execute("UPDATE outbox.jobs SET owner = 999999, claimed_at = now()")
    worker.conn.execute(MAINTENANCE["jobs_sweep"], {"limit": 10, **ALL})
    assert worker.told() == ["back"]


def test_a_job_made_again_by_hand_is_new(rested: Callable[..., Rested]) -> None:
    worker = rested(idle=True)
    ((job, _),) = claimed(worker)
    worker.conn.execute(*commit.fail([(job, Failed("no", None))]))
    worker.conn.execute("SELECT outbox.retry('p', 'e')")
    assert worker.told() == ["new"]


def test_only_what_came_back_makes_the_next_scan_begin_at_zero(rested: Callable[..., Rested]) -> None:
    """A scan from zero is dear while a transaction is open: it walks over all that has ended since."""
    worker = rested(idle=True)
    lane = worker.inflight.lanes["p", "first"]
    lane.scan.start(100.0)
    lane.scan.found(0, 10, [7], cost=60.0)
    worker.inflight.wakeups.notified("new")
    assert lane.scan.start(100.1) == 7
    worker.inflight.wakeups.notified("back")
    assert lane.scan.start(100.2) == 0


def test_a_job_that_is_committed_later_than_one_with_a_higher_id_is_found_at_once(
    dsn: str, rested: Callable[..., Rested]
) -> None:
    """However dear scans from zero are."""
    worker = rested(idle=True)
    lane = worker.inflight.lanes["p", "first"]
    lane.scan.start(time.monotonic())
    lane.scan.found(0, 10, [10**9], cost=60.0)
    worker.pipeline.submit(worker.conn, "e", Post())
    (said,) = worker.told()

    async def scenario() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
            worker.inflight.wakeups.notified(said)
            await worker.goes_to_sleep(session)

    asyncio.run(scenario())
    assert len(worker.jobs()) == 1


def test_a_worker_that_listens_asks_as_soon_as_there_is_nothing_and_stops_under_load(
    conn: Conn, dsn: str, rested: Callable[..., Rested]
) -> None:
    worker = rested()

    async def scenario() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as session:
            await worker.goes_to_sleep(session)
            assert worker.inflight.wakeups.idle
            worker.pipeline.submit(conn, "e", Post())
            await worker.goes_to_sleep(session)
            assert worker.inflight.wakeups.idle, "one job is no load"
            assert worker.told() == ["new"]
            worker.inflight.drop_waiting()
            for _ in range(300):
                worker.inflight.wakeups.notified("new")
            worker.inflight.wakeups.claiming()
            await worker.goes_to_sleep(session)
            assert not worker.inflight.wakeups.idle
            worker.pipeline.submit(conn, "f", Post())
            assert worker.told() == [], "under load there is no NOTIFY"

    asyncio.run(scenario())
