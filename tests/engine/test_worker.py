"""The worker in the test's own process: what handlers may do, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from kit.pipelines import (
    LATER,
    QUICK,
    Post,
    deployed,
    drain,
    drain_all,
    first_out_of_time,
    make_posts,
    one_stage,
    run_one,
    status_of,
    value,
)
from kit.servers import DEADLINE, wait_for
from outbox import (
    Backoff,
    DefinitionError,
    Go,
    LeaseLost,
    NotDeployed,
    Pipeline,
    Reject,
    Retry,
    Run,
    SchemaError,
    Worker,
)
from outbox.engine import claimer, maintenance
from outbox.engine.claimer import Claimer
from outbox.engine.maintenance import Maintenance

Conn = psycopg.Connection[Any]


def dead_error(conn: Conn) -> str:
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def test_a_workflow_goes_through_all_stages_with_history_and_messages(conn: Conn, dsn: str) -> None:
    posts = deployed(conn)
    posts.submit(conn, "calm", Post(content="hello"))
    posts.submit(conn, "angry", Post(content="risky"))
    drain(posts, dsn)
    assert (status_of(conn, "calm"), status_of(conn, "angry")) == ("COMPLETED", "WAITING_FOR_REVIEW")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'APPROVED' WHERE entity_id = 'angry'")
    drain(posts, dsn)
    assert status_of(conn, "angry") == "COMPLETED"
    trail = conn.execute(
        "SELECT from_status, to_status, c.version, stage, attempt, actor LIKE 'worker-%' FROM outbox.state_changes c "
        "JOIN outbox.workflow_states w ON w.id = workflow_id WHERE entity_id = 'angry' ORDER BY c.version"
    ).fetchall()
    assert trail == [
        (None, "RECEIVED", 1, None, None, False),
        ("RECEIVED", "ENRICHED", 2, "enrich", 1, True),
        ("ENRICHED", "WAITING_FOR_REVIEW", 3, "decide", 1, True),
        ("WAITING_FOR_REVIEW", "APPROVED", 4, None, None, False),
        ("APPROVED", "COMPLETED", 5, "act", 1, True),
    ]
    messages = conn.execute(
        "SELECT topic, key, payload, workflow_id IS NOT NULL FROM outbox.messages ORDER BY key"
    ).fetchall()
    assert messages == [
        ("posts.enriched", "angry", {"entity_id": "angry"}, True),
        ("posts.enriched", "calm", {"entity_id": "calm"}, True),
    ]
    assert (
        value(
            conn,
            "SELECT metadata #>> '{enrichment,length}' FROM outbox.workflow_states WHERE entity_id = 'calm'",
        )
        == "5"
    )


def test_sync_handlers_run_in_threads(conn: Conn, dsn: str) -> None:
    seen: list[str] = []

    def work(run: Run[Post]) -> Post:
        seen.append(threading.current_thread().name)
        return Post(content="done")

    run_one(conn, dsn, work)
    assert status_of(conn, "a") == "DONE"
    assert seen != [threading.main_thread().name]


def test_retry_backoff_and_the_last_attempt(conn: Conn, dsn: str) -> None:
    attempts: list[tuple[int, str]] = []

    async def work(run: Run[Post]) -> None:
        attempts.append((run.attempt, run.idempotency_key))
        raise ValueError("boom\0\ud800")

    worker = run_one(conn, dsn, work)
    assert [number for number, _ in attempts] == [1, 2, 3, 4]
    assert len({key for _, key in attempts}) == 1, "the same key in every attempt"
    assert worker.counts.dead == 1
    assert status_of(conn, "a") == "NEW", "a dead job leaves its workflow in the status it had"
    assert dead_error(conn).startswith("ValueError: boom\ufffd?")
    assert "test_worker.py" in dead_error(conn)


def test_retry_after_waits_and_reject_gives_up_at_once(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.attempt == 1:
            raise Retry(after=0.05)
        raise Reject("no such customer")

    run_one(conn, dsn, work)
    assert value(conn, "SELECT attempts FROM outbox.dead_jobs") == 2
    assert dead_error(conn) == "no such customer"


class Stubborn(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 100_000_000


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        Stubborn(),
        Huge(),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_no_exception_of_a_handler_ends_the_worker(conn: Conn, dsn: str, error: BaseException, colour: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.entity_id == "a":
            raise error

    def work_sync(run: Run[Post]) -> None:
        if run.entity_id == "a":
            raise error

    pipeline = deployed(conn, one_stage(work if colour == "async" else work_sync, retry=Backoff(attempts=1)))
    pipeline.submit(conn, "a", Post())
    pipeline.submit(conn, "b", Post())
    drain(pipeline, dsn)
    assert status_of(conn, "b") == "DONE"
    assert type(error).__name__ in dead_error(conn)
    assert len(dead_error(conn)) < 10_000


async def coroutine() -> None: ...


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    "result",
    [
        lambda: coroutine(),
        lambda: generator(),
        lambda: object(),
        lambda: Go("NOWHERE"),
        lambda: "text",
        lambda: Go("DONE", 5),
    ],
    ids=["coroutine", "generator", "object", "unknown status", "text", "wrong data"],
)
def test_a_result_that_is_no_outcome_fails_the_attempt_and_says_why(
    conn: Conn, dsn: str, result: Callable[[], Any]
) -> None:
    def work(run: Run[Post]) -> Any:
        return result()

    run_one(conn, dsn, work, retry=Backoff(attempts=1))
    assert status_of(conn, "a") == "NEW"
    assert "stage p.work" in dead_error(conn)


def test_a_stage_with_several_targets_must_name_one(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE", "OTHER"})

    @pipeline.stage("work", on="NEW", to={"DONE", "OTHER"}, retry=Backoff(attempts=1))
    async def work(run: Run[Post]) -> Post:
        return run.data

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert "return Go(status)" in dead_error(conn)


def test_data_that_does_not_fit_the_model_is_dead_with_the_reason_and_others_go_on(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn)
    pipeline.submit(conn, "good", Post())
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES "
        "('posts', 'null', 'null'), ('posts', 'list', '[]'), ('posts', 'wrong', '{\"content\": [1]}')"
    )
    drain(pipeline, dsn)
    assert status_of(conn, "good") == "COMPLETED"
    errors = dict(conn.execute("SELECT entity_id, error FROM outbox.dead_jobs").fetchall())
    assert set(errors) == {"null", "list", "wrong"}
    assert "content: Input should be a valid string" in errors["wrong"]


def test_a_handler_that_outlives_its_timeout_loses_its_job(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.attempt == 1:
            await asyncio.sleep(3600)

    first_out_of_time(conn, dsn, partial(one_stage, work), {"a": Post()})
    assert status_of(conn, "a") == "DONE"
    assert value(conn, "SELECT attempt FROM outbox.state_changes WHERE to_status = 'DONE'") == 2


def test_a_thread_that_outlives_its_timeout_changes_nothing_and_learns_it(conn: Conn, dsn: str) -> None:
    release, learnt = threading.Event(), []

    def work(run: Run[Post]) -> Post:
        if run.attempt == 1:
            release.wait(DEADLINE)
            try:
                run.publish("late", {})
            except LeaseLost as error:
                learnt.append(error)
            return Post(content="late")
        release.set()
        return Post(content="in time")

    first_out_of_time(conn, dsn, partial(one_stage, work), {"a": Post()})
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "in time"
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 0
    assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'DONE'") == 1
    wait_for(lambda: learnt, what="the late handler is told")


@pytest.fixture
def effects(conn: Conn) -> Conn:
    conn.execute("CREATE TABLE outbox.witness (entity text, attempt int)")
    return conn


EFFECT = "INSERT INTO outbox.witness VALUES (%s, %s)"


def test_what_a_handler_writes_in_its_transaction_commits_with_the_status(effects: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        run.publish("t", {"n": run.attempt})
        if run.attempt == 1:
            raise ValueError("after the effect")

    run_one(effects, dsn, work, transaction=True)
    assert effects.execute("SELECT * FROM outbox.witness").fetchall() == [("a", 2)]
    assert effects.execute("SELECT payload FROM outbox.messages").fetchall() == [({"n": 2},)]
    assert effects.execute("SELECT stage, attempt FROM outbox.state_changes WHERE to_status = 'DONE'").fetchall() == [
        ("work", 2)
    ]


def test_sync_handlers_have_transactions_too(effects: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.attempt == 1:
            raise ValueError("after the effect")

    run_one(effects, dsn, work, transaction=True)
    assert effects.execute("SELECT * FROM outbox.witness").fetchall() == [("a", 2)]
    assert status_of(effects, "a") == "DONE"


def test_a_fenced_handler_transaction_is_rolled_back(effects: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        await asyncio.to_thread(effects.execute, "UPDATE outbox.workflow_states SET current_status = 'MOVED'")

    worker = run_one(effects, dsn, work, transaction=True)
    assert value(effects, "SELECT count(*) FROM outbox.witness") == 0
    assert (status_of(effects, "a"), worker.counts.lost) == ("MOVED", 1)


async def _commit(run: Run[Post]) -> None:
    await run.connection.commit()


async def _commit_by_sql(run: Run[Post]) -> None:
    await run.connection.execute("COMMIT")


async def _commit_and_begin(run: Run[Post]) -> None:
    await run.connection.execute("COMMIT")
    await run.connection.execute("BEGIN")


async def _rollback(run: Run[Post]) -> None:
    await run.connection.execute("ROLLBACK")


async def _close(run: Run[Post]) -> None:
    await run.connection.close()


async def _abort(run: Run[Post]) -> None:
    try:
        await run.connection.execute("SELECT 1/0")
    except psycopg.Error:
        return


async def _delete_own_job(run: Run[Post]) -> None:
    await run.connection.execute("DELETE FROM outbox.jobs")


@pytest.mark.parametrize("misuse", [_commit, _commit_by_sql, _commit_and_begin, _rollback, _close, _abort])
def test_a_handler_that_breaks_its_transaction_fails_and_the_worker_lives(
    effects: Conn, dsn: str, misuse: Callable[[Run[Post]], Any]
) -> None:
    async def work(run: Run[Post]) -> None:
        if run.entity_id == "a":
            await misuse(run)

    pipeline = deployed(effects, one_stage(work, transaction=True, retry=Backoff(attempts=1)))
    pipeline.submit(effects, "a", Post())
    pipeline.submit(effects, "b", Post())
    drain(pipeline, dsn)
    assert (status_of(effects, "a"), status_of(effects, "b")) == ("NEW", "DONE")
    assert value(effects, "SELECT count(*) FROM outbox.dead_jobs") == 1


def test_a_handler_that_deletes_its_own_job_changes_nothing(effects: Conn, dsn: str) -> None:
    pipeline = deployed(effects, one_stage(_delete_own_job, transaction=True))
    pipeline.submit(effects, "a", Post())
    worker = drain(pipeline, dsn)
    assert worker.counts.done == 0
    assert status_of(effects, "a") == "NEW"
    assert value(effects, "SELECT count(*) FROM outbox.state_changes") == 1


def test_an_in_progress_status_is_stored_while_the_handler_runs(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})

    @pipeline.stage("work", on="NEW", to="DONE", running="WORKING", retry=QUICK)
    async def work(run: Run[Post]) -> None:
        seen.append((run.status, await asyncio.to_thread(status_of, conn, "a"), run.attempt, run.idempotency_key))
        if run.attempt == 1:
            raise ValueError("once more")

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Post())
    drain_all(conn, dsn, pipeline)
    assert [item[:3] for item in seen] == [("WORKING", "WORKING", 1), ("WORKING", "WORKING", 2)]
    assert seen[0][3] == seen[1][3], "the same key in every attempt"
    trail = conn.execute("SELECT to_status, stage, attempt FROM outbox.state_changes ORDER BY version").fetchall()
    assert trail == [("NEW", None, None), ("WORKING", "work", 1), ("DONE", "work", 2)]


class InProgress:
    """A worker whose stage stores an in-progress status, in a thread; `begun` has what its handler was given."""

    def __init__(self, conn: Conn, dsn: str, concurrency: int) -> None:
        self.begun: list[tuple[str, str]] = []
        self.go_on = threading.Event()
        pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})

        @pipeline.stage("work", on="NEW", to="DONE", running="WORKING", retry=QUICK)
        async def work(run: Run[Post]) -> None:
            self.begun.append((run.entity_id, run.status))
            await asyncio.to_thread(self.go_on.wait, DEADLINE)

        self.pipeline = deployed(conn, pipeline)
        self.worker = Worker(pipeline, dsn, concurrency=concurrency)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.worker.run()))

    def __enter__(self) -> InProgress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.worker.stop()
        self.worker.stop()
        self._thread.join(DEADLINE)


def submit_locked(conn: Conn, other: Conn, pipeline: Pipeline[Any], entity: str, lock: str) -> None:
    """Submit an entity whose job is claimed while `other` keeps what `lock` locks."""
    with conn.transaction():
        pipeline.submit(conn, entity, Post())
        conn.execute("UPDATE outbox.jobs SET due = false, run_at = now() + interval '1 hour' WHERE owner IS NULL")
    other.execute("BEGIN")
    other.execute(lock.encode())
    conn.execute("UPDATE outbox.jobs SET due = true WHERE owner IS NULL")


def test_no_handler_begins_before_its_in_progress_status_is_stored_though_there_is_room(
    conn: Conn, dsn: str, connect: Callable[..., Conn]
) -> None:
    other = connect()
    with InProgress(conn, dsn, concurrency=2) as working:
        working.pipeline.submit(conn, "first", Post())
        wait_for(lambda: working.begun, what="the first one runs")
        submit_locked(
            conn, other, working.pipeline, "second",
            "SELECT FROM outbox.workflow_states WHERE entity_id = 'second' FOR UPDATE",
        )  # fmt: skip
        wait_for(lambda: value(conn, "SELECT max(released) FROM outbox.jobs") >= 2, what="it is put off")
        working.go_on.set()
        wait_for(lambda: status_of(conn, "first") == "DONE", what="the first one is done, and leaves room")
        assert working.begun == [("first", "WORKING")]
        other.execute("ROLLBACK")
        wait_for(lambda: status_of(conn, "second") == "DONE", what="the second one is done")
        assert working.begun == [("first", "WORKING"), ("second", "WORKING")]


def test_a_lost_connection_while_the_in_progress_status_is_stored_keeps_no_lane_full(
    conn: Conn, dsn: str, connect: Callable[..., Conn]
) -> None:
    other = connect()
    with InProgress(conn, dsn, concurrency=1) as working:
        working.go_on.set()
        submit_locked(conn, other, working.pipeline, "only", "LOCK TABLE outbox.state_changes IN SHARE MODE")
        ended = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'outbox claim' AND wait_event_type = 'Lock'"
        )
        wait_for(lambda: value(conn, ended), what="the session that stores its in-progress status is ended")
        other.execute("ROLLBACK")
        wait_for(lambda: status_of(conn, "only") == "DONE", what="it is done all the same")


def test_a_worker_refuses_a_database_without_schema_or_pipeline_and_says_what_to_run(
    conn: Conn, dsn: str, empty_dsn: str
) -> None:
    with pytest.raises(SchemaError, match="outbox migrate"):
        drain(make_posts(), empty_dsn)
    with pytest.raises(NotDeployed, match="outbox deploy"):
        drain(make_posts(), dsn)
    deployed(conn)
    changed = make_posts()
    changed.stage("escalate", on="WAITING_FOR_REVIEW", to="REJECTED")(lambda run: None)
    with pytest.raises(NotDeployed, match="WAITING_FOR_REVIEW doesn't go to stage escalate"):
        drain(changed, dsn)


def test_an_unknown_stage_is_named_with_those_that_there_are(dsn: str) -> None:
    with pytest.raises(DefinitionError, match=r"unknown stage 'enrichh'.*posts\.enrich, posts\.decide, posts\.act"):
        Worker(make_posts(), dsn, stages=["enrichh"])


def test_a_worker_made_before_a_fork_refuses_to_run_after_it(dsn: str) -> None:
    worker = Worker(make_posts(), dsn)
    worker._service._pid = os.getpid() + 1
    with pytest.raises(Exception, match="before a fork"):
        asyncio.run(worker.run())


def test_concurrency_bounds_attempts_at_once(conn: Conn, dsn: str) -> None:
    running = peak = 0

    async def work(run: Run[Post]) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.005)
        running -= 1

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(30)))
    assert drain(pipeline, dsn, concurrency=3).counts.done == 30
    assert peak == 3


class Wide(BaseModel):
    numbers: list[int] = []
    text: str = ""


def test_odd_but_valid_data_goes_round_unchanged(conn: Conn, dsn: str) -> None:
    data = Wide(numbers=[10**400, -(2**63)], text="%s {} ' \" ; -- \n\t \u202e \U0001f600 \\u0000")

    async def work(run: Run[Wide]) -> Wide:
        return run.data

    pipeline = deployed(conn, one_stage(work, data=Wide))
    pipeline.submit(conn, "a'; DROP TABLE x; %s {} \U0001f600 \u202e", data)
    drain(pipeline, dsn)
    text = value(conn, "SELECT metadata::text FROM outbox.workflow_states WHERE current_status = 'DONE'")
    assert pipeline.load(text) == data


@pytest.mark.parametrize("notify", [True, False], ids=["notify", "every NOTIFY lost"])
def test_f24_an_idle_worker_starts_new_work_within_a_poll_interval(
    conn: Conn, dsn: str, notify: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claimer has no poll of its own here, and where there is NOTIFY there is nothing else: it is found at all."""
    posts = deployed(conn)
    looks: list[float] = []
    tick = Maintenance.tick

    async def noted(self: Maintenance, *, everything: bool = False) -> float:
        looks.append(await tick(self, everything=everything))
        return looks[-1]

    monkeypatch.setattr(claimer, "IDLE_POLL", 3600.0)
    monkeypatch.setattr(maintenance, "TICK", 3600.0 if notify else maintenance.TICK)
    monkeypatch.setattr(Maintenance, "tick", noted)

    async def scenario() -> None:
        worker = Worker(posts, dsn, notify=notify)
        running = asyncio.create_task(worker.run())
        # One that doesn't listen never asks to be woken: no session's PREPARE TRANSACTION fails over a NOTIFY for it.
        await until(lambda: value(conn, "SELECT idle FROM outbox.workers") if notify else len(looks) > 1)
        assert value(conn, "SELECT idle FROM outbox.workers") == notify
        await asyncio.to_thread(posts.submit, conn, "a", Post())
        await until(lambda: status_of(conn, "a") == "COMPLETED")
        worker.stop()
        await running

    asyncio.run(scenario())
    assert notify or max(looks) < 3.0, "what the worker waits from one look to the next, in seconds"
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0, "a worker that stops takes its row away"


async def until(condition: Callable[[], Any], timeout: float = DEADLINE) -> None:
    deadline = time.monotonic() + timeout
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)


def test_an_in_progress_status_that_a_deploy_took_away_puts_its_jobs_back_and_stops_no_others(
    conn: Conn, dsn: str
) -> None:
    def version(**options: Any) -> Pipeline[Any]:
        pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
        pipeline.stage("work", on="NEW", to="DONE", retry=QUICK, **options)(lambda run: None)
        pipeline.stage("other", on="MOVED", to="DONE")(lambda run: None)
        pipeline.allow("NEW", to="MOVED")
        return pipeline

    old = deployed(conn, version(running="WORKING"))

    async def go() -> None:
        worker = Worker(old, dsn)
        running = asyncio.create_task(worker.run())
        while not value(conn, "SELECT count(*) FROM outbox.workers"):
            await asyncio.sleep(0.01)
        deployed(conn, version())
        old.submit(conn, "a", Post())
        with conn.transaction():
            old.submit(conn, "b", Post())
            conn.execute("UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = 'b'")
        while (value(conn, "SELECT sum(released) FROM outbox.jobs"), worker.counts.done) != (1, 1):
            await asyncio.sleep(0.01)
        worker.stop()
        await running

    asyncio.run(asyncio.wait_for(go(), DEADLINE))
    assert conn.execute("SELECT attempt, error LIKE '%%WORKING%%' FROM outbox.jobs").fetchall() == [(0, True)]
    assert status_of(conn, "b") == "DONE"


def test_a_drain_does_not_end_on_a_claim_that_was_sent_before_the_last_failure_was_committed(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    claim = Claimer._claim

    async def answered_late(self: Claimer, lanes: Any) -> tuple[int, bool]:
        found, full = await claim(self, lanes)
        if not found and self._inflight.held():
            asked.set()
            deadline = asyncio.get_running_loop().time() + DEADLINE
            while self._inflight.held() and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.001)
        return found, full

    async def work(run: Run[Post]) -> None:
        await asyncio.wait_for(asked.wait(), DEADLINE)
        raise ValueError("not today")

    monkeypatch.setattr(Claimer, "_claim", answered_late)
    pipeline = deployed(conn, one_stage(work, retry=Backoff(first=0, attempts=2)))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert dead_error(conn).startswith("ValueError: not today")


def test_an_attempt_that_times_out_while_its_end_waits_for_a_lock_leaves_nothing(
    effects: Conn, connect: Callable[..., Conn], dsn: str
) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    lock = connect(autocommit=False)

    def make(**options: Any) -> Pipeline[Any]:
        return one_stage(work, transaction=True, **options)

    pipeline = deployed(effects, make(timeout=0.5, retry=LATER))
    pipeline.submit(effects, "a", Post())
    lock.execute(
        "SELECT FROM outbox.workflow_states FOR UPDATE"
    )  # so that the attempt can't end before its time is over
    timed_out = "SELECT count(*) = 1 FROM outbox.jobs WHERE error LIKE 'TimeoutError%'"

    def free() -> None:
        wait_for(lambda: value(effects, timed_out), what="the first attempt has timed out")
        lock.rollback()

    freeing = threading.Thread(target=free)
    freeing.start()
    drain(pipeline, dsn)
    freeing.join()
    assert value(effects, "SELECT count(*) FROM outbox.witness") == 0
    effects.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(make(timeout=DEADLINE, retry=LATER), dsn)
    assert effects.execute("SELECT * FROM outbox.witness").fetchall() == [("a", 2)]
    assert status_of(effects, "a") == "DONE"


@pytest.fixture
def no_files() -> Iterator[Callable[[bool], None]]:
    """Has this process open no more files, or as many as before. What is open stays so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(none: bool) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3 if none else soft, hard))

    yield limit
    limit(False)


@pytest.mark.parametrize("transaction", [False, True])
def test_a_worker_that_can_open_no_more_files_says_so_and_goes_on_when_it_can(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture, no_files: Callable[[bool], None], transaction: bool
) -> None:
    """All its sessions are ended meanwhile: not one can be made again."""
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'outbox %'"
    said: list[str] = []

    async def work(run: Run[Post]) -> None:
        if run.entity_id == "0" and not said:
            said.append("begun")
            no_files(True)
            conn.execute(ended.encode())

    p = one_stage(work, transaction=transaction, retry=Backoff(first=0.01, attempts=3))
    deployed(conn, p)
    p.submit_many(conn, ((str(n), Post()) for n in range(10)))

    async def until_it_is_said() -> None:
        async with asyncio.timeout(DEADLINE):
            while "too many open files" not in caplog.text:
                await asyncio.sleep(0.02)
        no_files(False)

    async def both() -> None:
        await asyncio.gather(Worker(p, dsn=dsn, drain=True).run(), until_it_is_said())

    asyncio.run(both())
    drain_all(conn, dsn, p)  # what was put back for a moment
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 10
    assert "see ulimit -n" in caplog.text
