"""F27: PgBouncer in transaction mode for OUTBOX_DSN, and a direct DSN for LISTEN. All works, and NOTIFY wakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from kit.broker import channel, queue_depth
from kit.commands import Outbox
from kit.faults import WORKER, check_books, drained, prepare, submit
from kit.pipelines import deployed, make_posts, value
from kit.pooler import SESSIONS, Pooler
from kit.servers import DEADLINE, Process, wait_for
from outbox import Backoff, Pipeline, Run, SettingsError, SyncTick, Tick, Worker
from outbox.database.session import require_pooled
from outbox.engine.wakeups import Wakeups

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


@pytest.fixture
def pooled(pooler: Pooler, dsn: str) -> str:
    """The test's database, through the pooler."""
    return pooler.dsn(dsn)


@pytest.fixture
def env(pooled: str, dsn: str) -> dict[str, str]:
    return {"OUTBOX_DSN": pooled, "OUTBOX_LISTEN_DSN": dsn}


def test_pooler_gives_each_transaction_any_session(pooled: str) -> None:
    """What the others rest on: here nothing of a session is ours for longer than a transaction."""
    with psycopg.connect(pooled, autocommit=True) as one, psycopg.connect(pooled, autocommit=True) as other:
        with one.transaction():
            mine = value(one, "SELECT pg_backend_pid()")
            assert value(other, "SELECT pg_backend_pid()") != mine
        with other.transaction():
            assert value(other, "SELECT pg_backend_pid()") == mine or value(one, "SELECT pg_backend_pid()") == mine


def test_workers_behind_a_pooler_do_everything_once_though_one_is_killed(
    conn: Conn, pooled: str, env: dict[str, str], dsn: str, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    app = prepare(conn, dsn)
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as client:
        submit(client, app, *(f"one-{n}" for n in range(200)))
        doomed = spawn(*WORKER, env={**env, "OUTBOX_KILL_AT": "K5:2"})
        doomed.wait()
        workers = [spawn(*WORKER, env=env) for _ in range(2)]
        submit(client, app, *(f"two-{n}" for n in range(200)))
        wait_for(lambda: drained(conn), what="all is done")
    check_books(conn, 400)
    for worker in workers:
        assert "ERROR" not in worker.text()
        assert "Traceback" not in worker.text()


def test_notify_wakes_a_worker_behind_a_pooler(
    conn: Conn, pooled: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = deployed(conn, make_posts())

    async def main() -> None:
        worker = Worker(posts, pooled, listen_dsn=dsn)
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.to_thread(wait_for, lambda: value(conn, "SELECT count(*) FROM outbox.workers WHERE idle"))
            heard = asyncio.Event()
            monkeypatch.setattr(Wakeups, "notified", lambda wakeups, what: heard.set())
            posts.submit(conn, "p1", {"content": "a"})
            await asyncio.wait_for(heard.wait(), DEADLINE)
        finally:
            worker.stop()
            await running

    asyncio.run(main())


def test_commands_work_through_a_pooler(conn: Conn, env: dict[str, str], outbox: Outbox) -> None:
    """Each more often than psycopg lets pass before it prepares a statement."""
    deployed(conn, make_posts())
    outbox("migrate", env=env)
    for number in range(8):
        line = f'{{"entity_id": "p{number}", "metadata": {{"content": "a"}}}}'
        outbox("submit", "--pipeline", "posts", input=line, env=env)
        outbox("show", f"p{number}", env=env)
        outbox("status", "--json", env=env)
    outbox("doctor", env=env, code=None)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 8


def test_relay_takes_the_direct_dsn(conn: Conn, env: dict[str, str], amqp: str, spawn: Spawn) -> None:
    with channel(amqp) as opened:
        opened.queue_declare("q", durable=True)
    spawn("relay", "--routing-key", "q", env={**env, "OUTBOX_AMQP_URL": amqp})
    for number in range(20):
        conn.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('t', %s)", [str(number)])
    wait_for(lambda: queue_depth(amqp, "q") == 20, what="all is relayed")


def test_sessions_of_others_are_left_as_they_were(conn: Conn, pooled: str, dsn: str) -> None:
    """What the engine sets for itself must not be met by the application's own statements."""
    posts = deployed(conn, make_posts())
    settings = """
        SELECT string_agg(name || ' = ' || setting, ', ' ORDER BY name) FROM pg_settings
        WHERE name IN ('DateStyle', 'IntervalStyle') -- which the pooler itself sets, as it does the application_name
        OR source = 'session' AND name <> 'application_name'
    """
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as client:
        posts.submit_many(client, ((f"p{n}", {"content": "a"}) for n in range(50)))
        client.execute("SET DateStyle = German")
        before: Any = value(client, settings)
        asyncio.run(asyncio.wait_for(Worker(posts, pooled, listen_dsn=dsn, drain=True).run(), DEADLINE))
        assert {value(client, settings) for _ in range(20)} == {before}


LEFT = (
    "SET search_path TO nowhere",
    "SET array_nulls = off",
    "SET DateStyle = 'German'",
    "SELECT set_config('app.tenant', 'a', false)",
    "CREATE TEMP TABLE mine AS SELECT 1 AS n",
    "SELECT pg_advisory_lock(42)",
    "PREPARE mine AS SELECT 1",
)
REFUSING = """
CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW WHEN (NEW.entity_id = '1') EXECUTE FUNCTION outbox.refuse();
"""
SEEN = """
SELECT current_setting('search_path') = 'nowhere', current_setting('array_nulls') = 'off',
       current_setting('DateStyle') LIKE 'German%', current_setting('app.tenant', true) = 'a',
       EXISTS (SELECT FROM pg_class WHERE relname = 'mine'), EXISTS (SELECT FROM pg_locks WHERE objid = 42),
       EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'mine'),
       current_setting('client_encoding') <> 'UTF8', current_setting('application_name') NOT LIKE 'outbox%'
"""


def require_session(conn: Conn, pooled: str, pid: int) -> list[tuple[Any, ...]]:
    """Returns what is seen in each session of the pooler, which several clients have at once.

    One of them is `pid`, unless the pooler has ended it, as it does where a client goes in the middle of a statement.
    """
    seen: dict[int, tuple[Any, ...]] = {}
    with ExitStack() as clients:
        for _ in range(SESSIONS):
            client = psycopg.connect(pooled, prepare_threshold=None, application_name="outbox test")
            for found, *row in clients.enter_context(client).execute(f"SELECT pg_backend_pid(), * FROM ({SEEN}) AS s"):
                seen[found] = tuple(row)
    ended = value(conn, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == 0
    assert (len(seen), pid in seen or ended) == (SESSIONS, True), "or the test shows nothing"
    return list(seen.values())


@pytest.mark.parametrize("end", ["done", "raises", "its statement fails", "its end is refused"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handler_leaves_nothing_in_a_session_that_the_pooler_gives_to_others(
    conn: Conn, pooled: str, dsn: str, colour: str, end: str
) -> None:
    last = "SELECT 1 / 0" if end == "its statement fails" else "SELECT 1"
    pids: list[int] = []
    seen: list[tuple[Any, ...]] = []

    def sync_work(run: Run[Any]) -> None:
        pids.append(value(run.connection, "SELECT pg_backend_pid()"))
        seen.append(run.connection.execute(SEEN).fetchone())
        if run.entity_id == "1":
            for statement in (*LEFT, last):
                run.connection.execute(statement)
            assert end != "raises"

    async def work(run: Run[Any]) -> None:
        pids.append((await (await run.connection.execute("SELECT pg_backend_pid()")).fetchone())[0])
        seen.append(await (await run.connection.execute(SEEN)).fetchone())
        if run.entity_id == "1":
            for statement in (*LEFT, last):
                await run.connection.execute(statement)
            assert end != "raises"

    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    handler: Any = work if colour == "async" else sync_work
    pipeline.stage("work", on="NEW", to="DONE", transaction=True, concurrency=1, retry=Backoff(attempts=1))(handler)
    deployed(conn, pipeline)
    for number in range(1, 6):
        pipeline.submit(conn, str(number), {})
    if end == "its end is refused":
        conn.execute(REFUSING)
    asyncio.run(Worker(pipeline, dsn=pooled, listen_dsn=dsn, drain=True).run())
    done = value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'")
    assert done == (5 if end == "done" else 4)
    seen += require_session(conn, pooled, pids[0])
    assert {any(row) for row in seen} == {False}, seen


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_schedule_leaves_nothing_in_a_session_that_the_pooler_gives_to_others(
    conn: Conn, pooled: str, dsn: str, colour: str, fails: bool
) -> None:
    pids: list[int] = []

    def tick(tick: SyncTick) -> None:
        pids.append(value(tick.connection, "SELECT pg_backend_pid()"))
        for statement in LEFT:
            tick.connection.execute(statement)
        assert not fails

    async def async_tick(tick: Tick) -> None:
        cursor = await tick.connection.execute("SELECT pg_backend_pid()")
        pids.extend(pid for (pid,) in await cursor.fetchall())
        for statement in LEFT:
            await tick.connection.execute(statement)
        assert not fails

    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.every("0 0 1 1 *", name="look")(async_tick if colour == "async" else tick)
    deployed(conn, pipeline)
    conn.execute("UPDATE outbox.schedules SET next_at = date_trunc('year', now(), 'UTC')")
    asyncio.run(asyncio.wait_for(Worker(pipeline, dsn=pooled, listen_dsn=dsn, drain=True).run(), DEADLINE))
    seen = require_session(conn, pooled, pids[0])
    assert {any(row) for row in seen} == {False}, seen


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("array_nulls = off", "array_nulls is off, .*SET array_nulls = on"),
        ("transform_null_equals = on", "transform_null_equals"),
        ("search_path = public, pg_catalog", "search_path is public, pg_catalog.*without pg_catalog"),
    ],
)
def test_a_session_that_cannot_be_made_right_behind_a_pooler_is_refused_by_name(
    conn: Conn, dsn: str, admin_dsn: str, setting: str, told: str, env: dict[str, str]
) -> None:
    """The pooler's own sessions are older than that: a direct one stands for a new one of its."""
    pipeline = make_posts()
    deployed(conn, pipeline)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET {setting}".encode())
    with pytest.raises(SettingsError, match=f"behind the pooler, .*{told}"):
        asyncio.run(Worker(pipeline, dsn=dsn, listen_dsn=f"{dsn}?application_name=direct", drain=True).run())
    with psycopg.connect(env["OUTBOX_LISTEN_DSN"], autocommit=True) as odd, pytest.raises(SettingsError, match=told):
        require_pooled(odd)
