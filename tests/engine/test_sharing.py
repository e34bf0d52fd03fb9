"""Handlers that take turns in one transaction: each is as if it were alone, and fails alone."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable, Generator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from kit.pipelines import LATER, QUICK, Post, deployed, drain, one_stage, value
from kit.roles import role
from kit.servers import DEADLINE
from outbox import Backoff, DefinitionError, Pipeline, Run
from outbox.database.steps import perform, perform_async
from outbox.database.turns import odd
from outbox.engine import sharing, transaction
from outbox.engine.inflight import Counts, InFlight
from outbox.engine.job import Job
from outbox.engine.lane import Lanes
from outbox.engine.sharing import LONGER, MOST_SLOW, SLOW, TRY_AGAIN, WINDOW_JOBS, Sharing

Conn = psycopg.Connection[Any]
Handler = Callable[[Run[Post]], Any]

EFFECT = "INSERT INTO outbox.witness (entity, n) VALUES (%s, %s)"
XIDS = "SELECT count(DISTINCT xmin::text) FROM outbox.workflow_states WHERE current_status = 'DONE'"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no transaction is too long, and the first one is shared."""
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    monkeypatch.setattr(sharing, "FIRST", 50)


@pytest.fixture(autouse=True)
def effects(conn: Conn) -> None:
    conn.execute("CREATE TABLE outbox.witness (entity text, n integer)")


@pytest.fixture(params=["async", "sync"])
def colour(request: pytest.FixtureRequest) -> Callable[[Callable[[Run[Post]], Generator[Any, Any, Any]]], Handler]:
    """Makes a handler of a function that yields what is to be awaited in an async one."""

    def sync(function: Callable[[Run[Post]], Generator[Any, Any, Any]]) -> Handler:
        return lambda run: perform(function(run), lambda step: step)

    def in_loop(function: Callable[[Run[Post]], Generator[Any, Any, Any]]) -> Handler:
        async def handler(run: Run[Post]) -> Any:
            return await perform_async(function(run), awaited)

        return handler

    return in_loop if request.param == "async" else sync


async def awaited(step: Any) -> Any:
    return await step if isinstance(step, Awaitable) else step


Colour = Callable[[Callable[[Run[Post]], Generator[Any, Any, Any]]], Handler]


def shared(conn: Conn, handler: Handler, count: int = 6, **options: Any) -> Pipeline[Any]:
    """Deploys a stage that shares, and submits workflows "0" and so on, which it takes in this order."""
    options = {"share": 50, "transaction": True, **options}
    pipeline = deployed(conn, one_stage(handler, **options))
    pipeline.submit_many(conn, ((str(n), Post()) for n in range(count)))
    return pipeline


def effects_of(conn: Conn) -> list[str]:
    return [entity for (entity,) in conn.execute("SELECT entity FROM outbox.witness ORDER BY entity")]


def done(conn: Conn) -> list[str]:
    query = "SELECT entity_id FROM outbox.workflow_states WHERE current_status = 'DONE' ORDER BY entity_id"
    return [entity for (entity,) in conn.execute(query)]


def test_waiting_jobs_share_one_commit(conn: Conn, dsn: str, colour: Colour) -> None:
    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    drain(shared(conn, colour(work)), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert value(conn, XIDS) == 1


def test_handlers_that_send_nothing_share_a_commit_with_those_that_do(conn: Conn, dsn: str, colour: Colour) -> None:
    """What opens a turn is sent before its handler is called, so its answer may be unread at the end."""

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        if run.entity_id == "1":
            raise ValueError("before any statement")
        if run.entity_id in "24":
            yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    drain(shared(conn, colour(work), retry=LATER), dsn, concurrency=1)
    assert done(conn) == list("02345")
    assert effects_of(conn) == ["2", "4"]
    assert value(conn, XIDS) == 1
    assert value(conn, "SELECT attempt FROM outbox.jobs WHERE stage IS NOT NULL") == 1


def test_one_that_times_out_before_its_first_statement_costs_only_its_own_attempt(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        if run.entity_id == "2":
            await asyncio.sleep(3600)
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    drain(shared(conn, work, timeout=1, retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("01345")
    assert value(conn, "SELECT error LIKE 'TimeoutError%' FROM outbox.jobs WHERE stage IS NOT NULL")


def test_a_session_that_ends_while_a_turn_is_opened_costs_nobody_an_attempt(
    conn: Conn, dsn: str, admin_dsn: str, colour: Colour
) -> None:
    ended: list[str] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        if run.entity_id == "2" and not ended:
            ended.append("once")
            with psycopg.connect(admin_dsn, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 60000)", (run.connection.info.backend_pid,))
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    drain(shared(conn, colour(work), retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.state_changes WHERE attempt > 0")


def test_one_that_raises_is_rolled_back_to_its_savepoint_and_the_others_go_on(
    conn: Conn, dsn: str, colour: Colour
) -> None:
    called: list[str] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        called.append(run.entity_id)
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            raise ValueError("not this one")
        if run.entity_id == "4":
            yield run.connection.execute("SELECT 1/0")

    drain(shared(conn, colour(work), retry=LATER), dsn, concurrency=1)
    assert called == list("012345"), "each is called once"
    assert effects_of(conn) == done(conn) == list("0135")
    rows = conn.execute("SELECT attempt, error FROM outbox.jobs ORDER BY error").fetchall()
    assert [attempt for attempt, _ in rows] == [1, 1]
    assert "DivisionByZero" in rows[0][1]
    assert "not this one" in rows[1][1]


SEEN = """
SELECT current_user, current_setting('TimeZone'), nullif(current_setting('app.tenant', true), ''), current_setting('work_mem'),
       (SELECT count(*) FROM pg_cursors WHERE name <> ''), (SELECT count(*) FROM pg_listening_channels()),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), current_setting('search_path'),
       current_setting('transaction_isolation'), current_setting('statement_timeout')
"""

LEFT = """
SET TimeZone = 'Asia/Tokyo'
SET LOCAL statement_timeout = '1h'
SELECT set_config('app.tenant', 'five', true)
SELECT outbox.tenant()
SET LOCAL search_path = ''
DECLARE c CURSOR WITH HOLD FOR SELECT 1
LISTEN news
SELECT pg_advisory_lock(1)
SET LOCAL ROLE lesser
"""
"""What handlers leave in the session. The role comes last, as it may do nothing else."""


def test_each_finds_the_session_as_if_it_were_alone(conn: Conn, dsn: str, admin_dsn: str, colour: Colour) -> None:
    hidden = (
        "CREATE FUNCTION outbox.tenant() RETURNS text LANGUAGE sql AS $$ SELECT set_config('work_mem', '9MB', false) $$"
    )
    conn.execute(hidden.encode())
    seen: list[Any] = []
    pids: list[int] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        connection = run.connection
        cursor = yield connection.execute(SEEN)
        seen.append((yield cursor.fetchone()))
        pids.append(connection.info.backend_pid)
        for statement in LEFT.strip().split("\n"):
            yield connection.execute(statement)
        connection.row_factory = dict_row

    with role(admin_dsn, "lesser"):
        drain(shared(conn, colour(work), 4), dsn, concurrency=1)
    assert done(conn) == list("0123")
    assert len(set(pids)) == 1
    assert value(conn, XIDS) < 4, "or it shows nothing"
    assert len(set(seen)) == 1
    assert seen[0][4:8] == (0, 0, 0, 0)


REFUSED = {
    "constraints": "SET CONSTRAINTS ALL IMMEDIATE",
    "a temporary table": "CREATE TEMP TABLE kept (n integer)",
    "a lock of the transaction": "SELECT pg_advisory_xact_lock(7)",
    "a savepoint of ours": "SAVEPOINT outbox_turn",
    "several statements": "SELECT 1; SELECT 2",
    "a block": "DO $$ BEGIN PERFORM 1; END $$",
}


@pytest.mark.parametrize("statement", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_put_back_gives_the_stage_transactions_of_its_own(
    conn: Conn, dsn: str, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "outbox.worker")

    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            await run.connection.execute(statement)

    drain(shared(conn, work, retry=Backoff(attempts=1)), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert caplog.text.count("transactions of their own from now on") == 1


def test_savepoints_of_a_handler_are_its_own(conn: Conn, dsn: str, colour: Colour) -> None:
    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        execute = run.connection.execute
        yield execute(EFFECT, (run.entity_id, 0))
        yield execute('SAVEPOINT "Outer"')
        yield execute(EFFECT, (run.entity_id, 1))
        yield execute("savepoint s1_x2;")
        yield execute("RELEASE SAVEPOINT S1_X2")
        yield execute("SAVEPOINT deeper")
        yield execute('ROLLBACK TO "Outer"')
        yield execute(EFFECT, (run.entity_id, 2))
        yield execute("SAVEPOINT still")
        if run.entity_id == "3":
            raise ValueError("not this one")

    drain(shared(conn, colour(work), retry=LATER), dsn, concurrency=1)
    assert done(conn) == list("01245")
    assert value(conn, XIDS) == 1
    found = conn.execute("SELECT entity, n FROM outbox.witness ORDER BY 1, 2").fetchall()
    assert found == [(entity, n) for entity in "01245" for n in (0, 2)]


def test_a_handler_can_not_go_back_to_a_savepoint_of_the_one_before(conn: Conn, dsn: str, colour: Colour) -> None:
    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "0":
            yield run.connection.execute("SAVEPOINT still")
        if run.entity_id == "1":
            yield run.connection.execute("SAVEPOINT mine")
            yield run.connection.execute("SAVEPOINT still")
            yield run.connection.execute("ROLLBACK TO mine")
            yield run.connection.execute("ROLLBACK TO still")  # its own is gone

    drain(shared(conn, colour(work), retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("02345")
    assert "InvalidSavepointSpecification" in value(conn, "SELECT error FROM outbox.jobs")


def test_what_cannot_be_put_back_is_seen_in_the_first_turn(conn: Conn, dsn: str, colour: Colour) -> None:
    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")

    drain(shared(conn, colour(work)), dsn, concurrency=1)
    assert len(done(conn)) == value(conn, XIDS) == 6


@pytest.mark.parametrize("statement", ["ROLLBACK", "SELECT 1; COMMIT"])
def test_one_that_ends_the_transaction_harms_no_other(conn: Conn, dsn: str, colour: Colour, statement: str) -> None:
    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            yield run.connection.execute(statement)

    drain(shared(conn, colour(work), retry=Backoff(attempts=1)), dsn, concurrency=1)
    assert done(conn) == list("01345")
    assert [each for each in effects_of(conn) if each != "2"] == list("01345"), "once each"
    assert "ended the transaction" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_deferred_constraint_costs_only_the_one_that_breaks_it(conn: Conn, dsn: str) -> None:
    conn.execute("ALTER TABLE outbox.witness ADD CONSTRAINT once UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    conn.execute("INSERT INTO outbox.witness VALUES ('first', 3)")

    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, int(run.entity_id)))

    drain(shared(conn, work, retry=LATER), dsn, concurrency=1)
    assert done(conn) == list("01245")
    assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE attempt = 1") == 5
    assert "once" in value(conn, "SELECT error FROM outbox.jobs")


def test_the_fence_is_checked_for_each_job(conn: Conn, dsn: str, colour: Colour) -> None:
    """Somebody changes the data of one of them while others take their turns: only that one is put back."""
    calls: list[tuple[str, str]] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        calls.append((run.entity_id, run.data.content))
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "4" and run.data.content == "hello" and calls.count(("2", "new")) == 0:
            conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"content\": \"new\"}' WHERE entity_id = '2'")

    drain(shared(conn, colour(work)), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert ("2", "new") in calls
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.state_changes WHERE attempt > 0")


def test_a_handler_that_times_out_costs_only_its_own_attempt(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            await run.connection.execute("SELECT pg_sleep(60)")

    drain(shared(conn, work, timeout=1, retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("01345")
    assert value(conn, "SELECT error LIKE 'TimeoutError%%' FROM outbox.jobs")
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.state_changes WHERE attempt > 0")


def test_a_thread_that_hangs_costs_only_its_own_attempt(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others don't wait for it: they have their turns again, in another transaction."""
    monkeypatch.setattr(transaction, "OTHERS_TURN", 0.1)
    going_on = threading.Event()
    calls: list[str] = []

    def work(run: Run[Post]) -> None:
        calls.append(run.entity_id)
        run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            going_on.wait(60)
        if calls.count("0") == 2 or calls.count("1") == 2:
            going_on.set()

    drain(shared(conn, work, timeout=1, retry=LATER), dsn, concurrency=2)
    assert "2" not in effects_of(conn)
    assert effects_of(conn) == done(conn) == list("01345")
    assert value(conn, "SELECT error LIKE 'TimeoutError%%' FROM outbox.jobs")


def test_one_that_raises_cancelled_error_or_exits_costs_only_its_own_attempt(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            raise asyncio.CancelledError
        if run.entity_id == "3":
            raise SystemExit
        if run.entity_id == "4":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    drain(shared(conn, work, retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("015")
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE attempt = 1") == 3


def test_a_lost_connection_costs_only_the_one_that_lost_it(conn: Conn, dsn: str, admin_dsn: str) -> None:
    """The others are tried alone: their work was lost with it, and no attempt."""
    calls: list[str] = []

    async def work(run: Run[Post]) -> None:
        calls.append(run.entity_id)
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "3" and calls.count("3") == 1:
            await run.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    drain(shared(conn, work, retry=QUICK), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.state_changes WHERE attempt > 0")


def test_a_server_that_ends_the_session_at_the_common_commit_costs_nobody_an_attempt(
    conn: Conn, dsn: str, colour: Colour
) -> None:
    """Nothing of it was committed, and the worker finds that out before it tries each alone."""
    conn.execute("CREATE SEQUENCE outbox.once")
    conn.execute(
        "CREATE FUNCTION outbox.end_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('outbox.once') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$"
    )
    conn.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON outbox.witness DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION outbox.end_it()"
    )
    called: list[str] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        called.append(run.entity_id)
        yield run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    worker = drain(shared(conn, colour(work), retry=QUICK), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")
    assert sorted(called) == sorted("012345" * 2), "all of them together, and each alone"
    assert worker.counts == Counts(done=6)
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.state_changes WHERE attempt > 0")


def test_an_error_that_a_handler_swallows_is_its_own(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))
        if run.entity_id == "2":
            with contextlib.suppress(psycopg.Error):
                await run.connection.execute("SELECT 1/0")

    drain(shared(conn, work, retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("01345")


def test_handlers_may_have_blocks_pipelines_copies_and_cursors_of_their_own(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        connection, entity = run.connection, run.entity_id
        match int(entity) % 6:
            case 1:
                async with connection.transaction():
                    await connection.execute(EFFECT, (entity, 1))
            case 2:
                async with connection.pipeline():
                    await connection.execute(EFFECT, (entity, 1))
            case 3:
                async with connection.cursor().copy("COPY outbox.witness FROM STDIN") as copy:
                    await copy.write_row((entity, 1))
            case 4:
                await connection.cursor().executemany(EFFECT, [(entity, 1)])
            case 5:
                async with connection.cursor(name="mine") as cursor:
                    await cursor.execute("SELECT 5")
                    assert await cursor.fetchall() == [(5,)]
                await psycopg.AsyncClientCursor(connection).execute(EFFECT, (entity, 1))
            case _:
                async for _ in connection.cursor().stream("SELECT 1"):
                    pass
                await connection.execute(EFFECT, (entity, 1))
        if int(entity) >= 6:
            raise ValueError("rolled back")

    drain(shared(conn, work, 12, retry=LATER), dsn, concurrency=1)
    assert effects_of(conn) == done(conn) == list("012345")


def test_context_variables_of_one_are_not_there_for_the_next(conn: Conn, dsn: str, colour: Colour) -> None:
    told: contextvars.ContextVar[str] = contextvars.ContextVar("told", default="")
    seen: list[str] = []

    def work(run: Run[Post]) -> Generator[Any, Any, Any]:
        seen.append(told.get())
        told.set(run.entity_id)
        yield run.connection.execute("SELECT 1")

    drain(shared(conn, colour(work)), dsn, concurrency=1)
    assert seen == [""] * 6


def test_two_transactions_that_lock_each_others_rows_cost_nobody_an_attempt(conn: Conn, dsn: str) -> None:
    """In both orders at once, which is a deadlock as soon as several of them share a transaction."""
    conn.execute("CREATE TABLE outbox.accounts AS SELECT n, 0 AS sum FROM generate_series(0, 9) AS n")

    async def work(run: Run[Post]) -> None:
        n = int(run.entity_id)
        row = n % 10 if (n // 10) % 2 else 9 - n % 10
        await run.connection.execute("UPDATE outbox.accounts SET sum = sum + 1 WHERE n = %s", (row,))

    drain(shared(conn, work, 100, retry=Backoff(attempts=1)), dsn, concurrency=4)
    assert len(done(conn)) == 100
    assert value(conn, "SELECT sum(sum) FROM outbox.accounts") == 100
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0


def test_other_isolation_levels_share_nothing(conn: Conn, dsn: str, admin_dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute(EFFECT, (run.entity_id, run.attempt))

    name = conn.info.user
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE {name} SET default_transaction_isolation = 'repeatable read'".encode())
        try:
            drain(shared(conn, work), dsn, concurrency=1)
        finally:
            admin.execute(f"ALTER ROLE {name} RESET default_transaction_isolation".encode())
    assert effects_of(conn) == done(conn) == list("012345")
    assert value(conn, XIDS) == 6


def test_slow_handlers_have_transactions_of_their_own_at_once(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "LONGEST", 0.015)
    called = running = 0
    all_at_once = asyncio.Event()

    async def work(run: Run[Post]) -> None:
        nonlocal called, running
        called, running = called + 1, running + 1
        if running == 8:
            all_at_once.set()
        by_then_known = called > 8
        await asyncio.sleep(0.03)
        if by_then_known:
            await asyncio.wait_for(all_at_once.wait(), DEADLINE)
        running -= 1

    drain(shared(conn, work, 40), dsn, concurrency=8)
    assert len(done(conn)) == 40


@pytest.mark.parametrize(
    "options", [{"share": 0}, {"share": 51}, {"share": 5, "transaction": False}, {"share": 5, "batch": 2}]
)
def test_share_is_for_stages_with_a_transaction_for_each_job(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="share="):
        one_stage(lambda run: None, **{"transaction": True, **options})


@pytest.mark.parametrize(
    "statement",
    ["select '--' ; commit", "select 1 -- '\n; commit --'", "select 1 /* ' */ ; commit /* ' */", "vacuum", "begin",
     "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "set local transaction_read_only = on", "select E'\\'' ; commit"],
)  # fmt: skip
def test_odd_statements_are_known_in_any_dress(statement: str) -> None:
    assert odd(statement)


@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO t VALUES ('a; b')", "-- said\n/* so */ select 1;", "(SELECT 1)", "with a as (select 1) select 1",
     "SET LOCAL app.x = '5'", "select 'set constraints'"],
)  # fmt: skip
def test_plain_statements_are_no_odd_ones(statement: str) -> None:
    assert not odd(statement)


def grown(most: int = 8) -> Sharing:
    """Return what a stage shares whose transactions have gone well, and are full."""
    one = Sharing("p.work", most)
    for _ in range(6):
        one.ended(one.size(0), cut=False, waiting=False)
    assert one.size(0) == most
    return one


def test_transactions_that_get_in_each_others_way_are_shared_one_at_a_time_and_then_not_at_all() -> None:
    one = grown()
    assert one.size(1) == 8
    one.conflicted()
    assert [one.size(0), one.size(1)] == [8, 0], "it waits until the other has ended"
    one.conflicted()
    assert [one.size(0), one.size(1)] == [1, 1]


def test_sharing_less_lasts_twice_as_long_each_time() -> None:
    one, lasted = grown(), []
    for _ in range(3):
        one.conflicted()
        one.conflicted()
        count = 0
        while one.size(1) == 1:
            one.had_own(0.001, 1, waiting=False)
            count += 1
        lasted.append(count)
        while one.size(1) == 0:
            one.ended(8, cut=False, waiting=False)
    assert lasted == [TRY_AGAIN, 2 * TRY_AGAIN, 4 * TRY_AGAIN]


def test_handlers_are_slow_that_leave_no_time_for_another_one_several_times() -> None:
    one = grown()
    for _ in range(SLOW):
        assert one.size(0) > 1
        one.ended(1, cut=True, waiting=False)
    assert one.size(9) == 1


def test_handlers_that_are_slow_by_chance_do_not_stop_their_stage_from_sharing_for_long() -> None:
    one, lasted = grown(), []
    for _ in range(6):
        while one.size(0) > 1:
            one.ended(1, cut=True, waiting=False)
        count = 0
        while one.size(0) == 1:
            one.had_own(0.001, 1, waiting=False)
            count += 1
        lasted.append(count)
    for_slow = [TRY_AGAIN, 2 * TRY_AGAIN, 4 * TRY_AGAIN, 8 * TRY_AGAIN, MOST_SLOW, MOST_SLOW]
    assert lasted == [jobs + 1 for jobs in for_slow], "the one after them shows that handlers are quick"


def test_a_stage_that_gains_by_sharing_asks_ever_less_often_and_with_few_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(sharing, "time", SimpleNamespace(monotonic=lambda: now))
    one = grown()
    phases: list[list[int]] = [[8, 0]]  # jobs in a transaction, and how many jobs in a row had so many
    while len(phases) < 7:
        jobs = one.size(0)
        now += 0.03 if jobs > 1 else 0.01
        one.ended(jobs, cut=False, waiting=True)
        if jobs != phases[-1][0]:
            phases.append([jobs, 0])
        phases[-1][1] += jobs
    shared_for, alone_for = (
        [count for jobs, count in phases[:6] if jobs > 1],
        [count for jobs, count in phases[:6] if jobs == 1],
    )
    assert all(count <= WINDOW_JOBS + 1 for count in alone_for), "no more than it takes to know"
    assert all(LONGER - 1 <= later / before <= LONGER + 1 for before, later in pairwise(shared_for))


def test_stages_of_one_process_share_one_transaction_each_beside_each_other() -> None:
    """One event loop and one database work for all of them: the more run, the fewer turns fit into each."""
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"C"})

    async def work(run: Run[Post]) -> None: ...

    pipeline.stage("one", on="A", to="B", transaction=True, share=8)(work)
    pipeline.stage("two", on="B", to="C", transaction=True, share=8)(work)
    lanes = Lanes.of([pipeline], None, None)
    inflight = InFlight(lanes)
    one, two = lanes.values()
    for lane in (one, two):
        lane.sharing = grown()
        for number in range(40):
            lane.add(Job(lane.stage, 1, 1, f"{number}", 1, 1, False, f"{number}", min(lane.stage.on), 1, "{}"))
    first = inflight.start(one)
    assert len(first) == 8
    assert len(inflight.start(one)) == 8, "it has the process to itself"
    assert len(inflight.start(two)) == 8, "a stage never waits for another one"
    assert inflight.start(two) == []
    one.leave(first)
    assert inflight.start(one) == []


def test_the_first_transaction_of_a_stage_is_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "FIRST", 1)
    one = Sharing("p.work", 50)
    assert one.size(0) == 1
    one.had_own(60.0, 1, waiting=False)
    assert one.size(0) == 1, "slow"
    one.had_own(0.001, 1, waiting=False)
    assert one.size(0) == 2
