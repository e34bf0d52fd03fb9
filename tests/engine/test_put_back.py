"""Put back is not free: what gives an attempt back without counting it is counted by itself, delayed, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, one_stage, value
from outbox import Backoff, Go, InvalidInput, Pipeline, Retry, Run
from outbox.engine import claim, commit, release
from outbox.engine.inflight import InFlight
from outbox.engine.job import Trouble
from outbox.engine.lane import Lane, Lanes
from outbox.engine.maintenance import Maintenance
from outbox.engine.retention import Retention

Conn = psycopg.Connection[Any]

TOUCH = """UPDATE outbox.workflow_states SET metadata = metadata
    || jsonb_build_object('n', coalesce((metadata ->> 'n')::integer, 0) + 1) WHERE entity_id = 'a'"""


def run_to_the_end(conn: Conn, dsn: str, pipeline: Pipeline[Any], *, times: int = 20) -> None:
    """Runs all that is due, and lets what is put off come due, as often as it needs."""
    for _ in range(times):
        drain(pipeline, dsn)
        if not value(conn, "SELECT count(*) FROM outbox.jobs"):
            return
        conn.execute("UPDATE outbox.jobs SET run_at = now() - interval '1 hour' WHERE owner IS NULL AND NOT due")
    raise AssertionError("it never ends")


def tick(dsn: str) -> None:
    async def go() -> None:
        maintenance = Maintenance(dsn, InFlight(Lanes()), Retention(), lease=30)
        await maintenance.tick(everything=True)
        await maintenance.close()

    asyncio.run(go())


@pytest.mark.parametrize("returns", ["data", "nothing"])
def test_data_that_is_changed_during_each_attempt_ends_in_a_dead_job(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, returns: str
) -> None:
    monkeypatch.setattr(release, "CHANGED", Trouble(release.CHANGED.reason, most=3))
    runs: list[int] = []

    async def work(run: Run[Any]) -> Any:
        runs.append(run.attempt)
        await asyncio.to_thread(conn.execute, TOUCH.encode())
        return run.data if returns == "data" else None

    pipeline = deployed(conn, one_stage(work, data=None, retry=Backoff(first=0.01, attempts=2)))
    pipeline.submit(conn, "a", {})
    run_to_the_end(conn, dsn, pipeline)
    assert runs == [1, 1, 1, 1, 2], "three are free; then they count"
    assert value(conn, "SELECT error FROM outbox.dead_jobs") == (
        "HandlerError: its data was changed meanwhile, 3 times in a row"
    )


def test_each_put_back_waits_for_longer_up_to_a_bound(conn: Conn) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None, data=None))
    pipeline.submit(conn, "a", {})
    lane = Lane(pipeline.stages["work"], 1)
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('test', '{}', '1 hour')")
    worker = value(conn, "SELECT id FROM outbox.workers")
    waits: list[float] = []
    for _ in range(6):
        conn.execute("UPDATE outbox.jobs SET due = true")
        claim.receive(
            worker, {("p", "work"): lane}, conn.execute(*claim.request(worker, [(lane, 1)], 0, careful=True)).fetchall()
        )
        with conn.transaction():
            conn.execute(*commit.put_back(lane.drop_waiting(), Trouble("no", first=0, next=10, longest=60)))
            waits.append(float(value(conn, "SELECT extract(epoch FROM run_at - now()) FROM outbox.jobs")))
    assert waits == [0, 10, 20, 40, 60, 60]


def test_a_change_of_status_begins_the_count_again(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="A", final={"C"})

    @pipeline.stage("one", on="A", to="B")
    async def one(run: Run[Any]) -> None:
        if value(conn, "SELECT released FROM outbox.jobs") == 0:
            await asyncio.to_thread(conn.execute, TOUCH.encode())

    @pipeline.stage("two", on="B", to="C")
    async def two(run: Run[Any]) -> None:
        seen.append(value(conn, "SELECT released FROM outbox.jobs"))

    seen: list[int] = []
    deployed(conn, pipeline).submit(conn, "a", {})
    run_to_the_end(conn, dsn, pipeline)
    assert seen == [0]


def newer(conn: Conn) -> tuple[Pipeline[Any], Pipeline[Any], list[int]]:
    """Returns a pipeline in an old and a new version, and the attempts that the new one is given."""
    attempts: list[int] = []

    async def work(run: Run[Any]) -> None:
        attempts.append(run.attempt)
        raise RuntimeError("a real error")

    def made(version: int) -> Pipeline[Any]:
        pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"}, version=version)
        pipeline.stage("work", on="NEW", to="DONE", retry=Backoff(first=0.01, attempts=3))(work)
        return pipeline

    old, new = made(1), made(2)
    deployed(conn, new).submit(conn, "a", {})
    return old, new, attempts


def test_newer_data_that_old_workers_put_back_leaves_the_new_one_all_attempts(conn: Conn, dsn: str) -> None:
    old, new, attempts = newer(conn)
    for _ in range(4):
        drain(old, dsn)
        assert value(conn, "SELECT attempt FROM outbox.jobs") == 0
        conn.execute("UPDATE outbox.jobs SET run_at = now() - interval '1 s'")
    run_to_the_end(conn, dsn, new)
    assert attempts == [1, 2, 3]


def test_who_put_newer_data_back_leaves_it_to_others_first(conn: Conn, dsn: str) -> None:
    old, _, _ = newer(conn)
    drain(old, dsn)
    worker = value(conn, "SELECT released_by FROM outbox.jobs")
    assert worker is not None
    again = """SELECT count(*) FROM outbox.jobs AS j
        WHERE j.released_by IS DISTINCT FROM %s OR j.run_at < now() - interval '30 seconds'"""
    conn.execute("UPDATE outbox.jobs SET run_at = now() - interval '5 s', due = true")
    assert (value(conn, again, worker), value(conn, again, worker + 1)) == (0, 1)
    conn.execute("UPDATE outbox.jobs SET run_at = now() - interval '31 s'")
    assert value(conn, again, worker) == 1, "where there is no other, it is counted by this one, until it ends"


def test_newer_data_that_nobody_can_read_ends_in_a_dead_job(conn: Conn, dsn: str) -> None:
    old, _, attempts = newer(conn)
    run_to_the_end(conn, dsn, old, times=30)
    assert "20 times in a row" in value(conn, "SELECT error FROM outbox.dead_jobs")
    assert attempts == []


@pytest.mark.parametrize("version", ['"x"', "null", "1.5", "{}", "[1]", "true", "0", "-1", "10001", "1e30"])
def test_a_version_that_no_code_can_have_is_dead_at_once(conn: Conn, dsn: str, version: str) -> None:
    async def work(run: Run[Any]) -> None: ...

    pipeline = deployed(conn, one_stage(work, data=None))
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('p', 'a', %s::jsonb)",
        [f'{{"$version": {version}}}'],
    )
    drain(pipeline, dsn)
    assert value(conn, "SELECT attempts FROM outbox.dead_jobs WHERE error LIKE '%%no version that any code%%'") == 1


@pytest.mark.parametrize("version", ["x", None, 1.5, {}, [1], True, 0])
def test_a_version_that_no_code_can_have_is_refused_on_its_way_in(conn: Conn, version: Any) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None, data=None))
    with pytest.raises(InvalidInput, match="version"):
        pipeline.submit(conn, "a", {"$version": version})


@pytest.mark.parametrize("how", ["Retry", "changed data", "a lost worker"])
def test_a_partition_that_changes_during_an_attempt_counts_when_the_job_is_put_back(
    conn: Conn, dsn: str, how: str
) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    moved = 'UPDATE outbox.workflow_states SET metadata = \'{"tenant": "b", "urgency": 7}\''

    @pipeline.stage("work", on="NEW", to="DONE", partition="tenant", priority="urgency", concurrency=1)
    async def work(run: Run[Any]) -> None:
        await asyncio.to_thread(conn.execute, moved.encode())
        if how == "Retry":
            raise Retry(after=3600)
        if how == "changed data":
            conn.execute("UPDATE outbox.jobs SET released = 5")

    deployed(conn, pipeline).submit(conn, "a", {"tenant": "a", "urgency": 1})
    if how == "a lost worker":
        conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1")
        conn.execute(moved.encode())
        tick(dsn)
    else:
        drain(pipeline, dsn)
    assert conn.execute("SELECT owner, partition, priority FROM outbox.jobs").fetchall() == [(None, "b", 7)]


# A deploy while a worker runs: its code and what is deployed are of two versions, and the job is for the other workers.


def version(
    on: str, attempts: list[int], *, running: str | None = None, deploys: Callable[[], None] = lambda: None
) -> Pipeline[Any]:
    """Returns a pipeline that moves to `on` or B, and whose stage takes `on`. `deploys` is called before it moves."""
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})

    @pipeline.stage("move", on="NEW", to={"A", "B"})
    def move(run: Run[Any]) -> Go[Any]:
        deploys()
        return Go("A" if running else "B")

    @pipeline.stage("work", on=on, to="DONE", running=running, retry=Backoff(first=0.01, attempts=2))
    async def work(run: Run[Any]) -> None:
        attempts.append(run.attempt)

    for one, other in ("AB", "BA"):
        pipeline.allow(one, to=other)
    return pipeline


@pytest.mark.parametrize("running", [None, "WORKING"])
def test_what_only_the_version_takes_that_is_deployed_meanwhile_burns_no_attempt(
    conn: Conn, dsn: str, running: str | None
) -> None:
    """The stage takes another status, or there is no such in-progress status any more."""
    attempts: list[int] = []
    new = version("A" if running else "B", attempts)
    old = version("A", attempts, running=running, deploys=lambda: deployed(conn, new) and None)
    deployed(conn, old).submit(conn, "a", {})
    drain(old, dsn)
    assert conn.execute("SELECT attempt, released, released_by IS NULL, due FROM outbox.jobs").fetchall() == [
        (0, 1, False, False)
    ]
    assert ("WORKING" if running else "takes A, and the workflow is in B") in value(
        conn, "SELECT error FROM outbox.jobs"
    )
    run_to_the_end(conn, dsn, new)
    assert attempts == [1]


@pytest.mark.parametrize("transaction", [False, True])
def test_a_status_that_no_deployed_version_takes_fails_with_the_reason(conn: Conn, dsn: str, transaction: bool) -> None:
    """Somebody has made the job by hand."""

    async def work(run: Run[Any]) -> None:
        raise AssertionError("it was called")

    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.stage("work", on="A", to="DONE", transaction=transaction, retry=Backoff(first=0.01, attempts=2))(work)
    pipeline.allow("NEW", to="A")
    deployed(conn, pipeline).submit(conn, "a", {})
    conn.execute("""
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered)
        SELECT id, 'p', 'work', 'A', version FROM outbox.workflow_states""")
    run_to_the_end(conn, dsn, pipeline)
    assert conn.execute("SELECT attempts, error FROM outbox.dead_jobs").fetchall() == [
        (2, "HandlerError: stage p.work takes A, and the workflow is in NEW: not run")
    ]


# What ends a row of put-backs.


@pytest.mark.parametrize("how", ["fails", "is lost with its worker"])
def test_an_attempt_that_counts_ends_the_row(conn: Conn, dsn: str, how: str) -> None:
    async def work(run: Run[Any]) -> None:
        raise Retry(after=3600)

    pipeline = deployed(conn, one_stage(work, data=None))
    pipeline.submit(conn, "a", {})
    conn.execute("UPDATE outbox.jobs SET released = 3")
    if how == "fails":
        drain(pipeline, dsn)
    else:
        conn.execute("UPDATE outbox.jobs SET owner = 999, claimed_at = now(), attempt = 1")
        tick(dsn)
    assert conn.execute("SELECT attempt, released FROM outbox.jobs").fetchall() == [(1, 0)]


def test_a_person_who_retries_begins_the_count_again(conn: Conn, dsn: str) -> None:
    old, _, _ = newer(conn)
    run_to_the_end(conn, dsn, old, times=30)
    assert value(conn, "SELECT outbox.retry('p', 'a')") is True
    assert conn.execute("SELECT attempt, released, released_by FROM outbox.jobs").fetchall() == [(0, 0, None)]


def test_results_that_are_kept_do_not_make_put_backs_endless(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler may keep something new each time: the row ends all the same."""
    monkeypatch.setattr(release, "CHANGED", Trouble(release.CHANGED.reason, most=2))
    runs: list[int] = []

    async def work(run: Run[Any]) -> None:
        runs.append(run.attempt)
        await run.once(f"step {len(runs)}", touch)

    async def touch() -> None:
        await asyncio.to_thread(conn.execute, TOUCH.encode())

    pipeline = deployed(conn, one_stage(work, data=None, retry=Backoff(first=0.01, attempts=1)))
    pipeline.submit(conn, "a", {})
    run_to_the_end(conn, dsn, pipeline)
    assert runs == [1, 1, 1]
