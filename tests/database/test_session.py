"""Sessions: as the engine needs them whatever server, database and role say, and for each handler as for the first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from kit.commands import Outbox
from kit.databases import OWNER
from kit.pipelines import Post, deployed, drain, drain_all, one_stage, run_one, status_of, value
from kit.roles import role
from kit.servers import PostgresServer
from outbox import Backoff, InvalidInput, Pipeline, Reject, Run, Tick
from outbox.database import migrations, session
from outbox.database.session import connect, connect_async
from outbox.operations.prepare import deploy

Conn = psycopg.Connection[Any]
Handler = Callable[..., Any]

ODD = {
    "client_encoding": "latin1",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "<+05>-05:30",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "statement_timeout": "20s",
    "lock_timeout": "20s",
    "idle_session_timeout": "1h",
    "search_path": "nowhere",
    "enable_nestloop": "off",
    "xmlbinary": "hex",
    "lc_messages": "C",
}
SHADOWS = """
CREATE SCHEMA shadow;
GRANT USAGE ON SCHEMA shadow TO public;
CREATE FUNCTION shadow.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''2001-01-01''::timestamptz';
CREATE FUNCTION shadow.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT ''shadowed''::text';
"""


@pytest.fixture
def odd(admin_dsn: str, dsn: str) -> str:
    """The test's database, in which new sessions begin as oddly as they can."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        for name, setting in ODD.items():
            words = sql.Identifier(admin.info.dbname), sql.Identifier(name), sql.Literal(setting)
            admin.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(*words))
    return dsn


def shop() -> Pipeline[Post]:
    """A pipeline with a plain stage, one in a transaction, a failure, a deadline and a schedule."""
    p: Pipeline[Post] = Pipeline("p", data=Post, initial="A", final={"Z", "LATE"})

    @p.stage("first", on="A", to="B", retry=Backoff(first=0, attempts=2))
    async def first(run: Run[Post]) -> Post:
        run.publish("t", {"said": "Ж"})
        if run.entity_id == "bad":
            raise ValueError("no such thing: Ж")
        return Post(content="Ж")

    @p.stage("second", on="B", to="C", transaction=True)
    async def second(run: Run[Post]) -> None:
        await run.connection.execute("SELECT 1")

    @p.stage("third", on="C", to="D", transaction=True)
    def third(run: Run[Post]) -> None:
        run.connection.execute("SELECT 1")

    p.deadline("D", seconds=1, to="LATE")

    @p.every("0 0 1 1 *")
    async def yearly(tick: Tick) -> None:
        await tick.connection.execute("INSERT INTO outbox.messages (topic, payload) VALUES ('tick', '1')")

    return p


def test_everything_works_whatever_the_database_sets(odd: str, outbox: Outbox) -> None:
    p = shop()
    with connect(odd, "test", pooled=True) as conn:
        deploy(conn, p)
    with psycopg.connect(odd, autocommit=True) as users:  # an application's own connection, as odd as all
        users.execute("CREATE TEMP TABLE kept AS SELECT name, setting FROM pg_settings")
        with users.transaction():
            deploy(users, p)
            assert migrations.apply(users) == []
            changed = "SELECT s.name FROM kept JOIN pg_settings AS s USING (name) WHERE s.setting <> kept.setting"
            assert set(users.execute(changed.encode()).fetchall()) <= {("transaction_deferrable",)}
        p.submit(users, "good", Post(content="plain"))
        assert p.submit_many(users, [("bad", Post())]) == 1
        with pytest.raises(InvalidInput, match="client_encoding is latin-1"):
            p.submit(users, "other", Post(content="Ж"))
    with connect(odd, "test") as conn:
        conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 second'")
        drain_all(conn, odd, p)  # the deadline ends it
        assert status_of(conn, "good") == "LATE"
        assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states WHERE entity_id = 'good'") == "Ж"
        assert "no such thing: Ж" in value(conn, "SELECT error FROM outbox.dead_jobs")
        assert value(conn, "SELECT count(*) FROM outbox.messages WHERE topic = 'tick'") == 1
        assert value(conn, "SELECT ran_at > '2020-01-01' FROM outbox.schedules")
    for command in (["status"], ["show", "good"], ["dead"], ["schedules"], ["doctor"], ["approvals"], ["migrate"]):
        outbox(*command, code=None if command == ["doctor"] else 0)


@pytest.mark.parametrize("whose", ["DATABASE", "ROLE"])
def test_what_postgres_has_comes_first_whatever_the_search_path_says(
    conn: Conn, dsn: str, admin_dsn: str, whose: str
) -> None:
    """Schemas with functions of Postgres' names stand before pg_catalog: the engine means Postgres' own."""
    path = "public, shadow, pg_catalog"
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(SHADOWS.encode())
        where = (
            f"DATABASE {admin.info.dbname}" if whose == "DATABASE" else f"ROLE {OWNER} IN DATABASE {admin.info.dbname}"
        )
        admin.execute(f"ALTER {where} SET search_path = {path}".encode())
    with psycopg.connect(dsn, autocommit=True) as users:
        assert value(users, "SELECT now()").year == 2001
        p = shop()
        deploy(users, p)
        p.submit(users, "good", Post(content="plain"))
        p.submit(users, "bad", Post())
        assert value(users, "SHOW search_path") == path, "what the user's session has is the user's"
    conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 second'")
    drain_all(conn, dsn, p)
    assert status_of(conn, "good") == "LATE"
    assert value(conn, "SELECT min(at) > '2020-01-01' FROM outbox.state_changes")
    assert value(conn, "SELECT count(*) FROM outbox.messages WHERE topic = 'tick'") == 1
    assert value(conn, "SELECT ran_at > '2020-01-01' FROM outbox.schedules")
    assert value(conn, "SELECT died_at > '2020-01-01' FROM outbox.dead_jobs")
    with connect(dsn, "test") as ours:
        assert value(ours, "SELECT current_schemas(false)") == ["public", "shadow"]


def test_a_session_of_the_engine_has_what_it_needs_in_both_colours(odd: str) -> None:
    async def asked(**options: Any) -> list[Any]:
        async with await connect_async(odd, "test", **options) as conn:
            return await (await conn.execute(QUESTION)).fetchall()

    for settings in (session.READING, session.WORKING):
        with connect(odd, "test", settings=settings) as conn:
            found = dict(conn.execute(QUESTION).fetchall())
            assert dict(asyncio.run(asked(settings=settings))) == found
        lower = {name.lower(): setting for name, setting in found.items()}
        wrong = {
            name: lower[name.lower()]
            for name, setting in settings.items()
            if name.lower() in lower and not lower[name.lower()].startswith(setting)
        }
        assert wrong == {}
        assert found["client_encoding"] == "UTF8"
        assert found["TimeZone"] == ODD["TimeZone"], "what the engine doesn't rely on is the user's choice"


QUESTION = b"SELECT name, CASE setting WHEN '0' THEN '0' ELSE setting END FROM pg_catalog.pg_settings"


LEFT = {
    "a setting of its own": "SELECT set_config('app.tenant', 'a', false)",
    "a search_path": "SET search_path TO nowhere",
    "a role": "SET ROLE lesser",
    "an isolation level": "SET default_transaction_isolation = 'serializable'",
    "a timeout": "SET statement_timeout = '1h'",
    "an advisory lock": "SELECT pg_advisory_lock(42)",
    "a temporary table": "CREATE TEMP TABLE mine AS SELECT 1 AS n",
    "a prepared statement": "PREPARE mine AS SELECT 1",
    "a cursor": "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "a channel": "LISTEN mine",
    "a style": "SET DateStyle = 'German'",
    "an encoding": "SET client_encoding = 'LATIN1'",
    "nulls": "SET array_nulls = off",
}
SEEN = """
SELECT current_setting('app.tenant', true) = 'a', current_setting('search_path') = 'nowhere', current_user = 'lesser',
       current_setting('default_transaction_isolation') = 'serializable', current_setting('statement_timeout') = '1h',
       EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objid = 42),
       to_regclass('pg_temp.mine') IS NOT NULL, EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'mine'),
       EXISTS (SELECT FROM pg_cursors WHERE name = 'mine'), EXISTS (SELECT FROM pg_listening_channels()),
       current_setting('DateStyle') LIKE 'German%', current_setting('client_encoding') = 'LATIN1',
       current_setting('array_nulls') = 'off'
"""


@pytest.mark.parametrize("ending", ["committed", "failed", "rejected"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_handler_leaves_nothing_to_the_next_one(
    conn: Conn, dsn: str, admin_dsn: str, colour: str, ending: str
) -> None:
    """One connection, one handler after the other: the second sees what the first has left."""
    seen: list[tuple[Any, ...]] = []
    pids: list[int] = []

    def end(run: Run[Post]) -> None:
        if run.entity_id == "1" and ending != "committed":
            raise Reject("no") if ending == "rejected" else ValueError("no")

    async def work(run: Run[Post]) -> None:
        connection = run.connection
        seen.append(await (await connection.execute(SEEN)).fetchone())
        assert (await (await connection.execute("SELECT '{}'::json")).fetchone()) == ({},)
        pids.append(connection.info.backend_pid)
        for statement in LEFT.values() if run.entity_id == "1" else ():
            await connection.execute(statement)
        spoil(connection)
        end(run)

    def sync_work(run: Run[Post]) -> None:
        connection = run.connection
        seen.append(connection.execute(SEEN).fetchone())
        assert connection.execute("SELECT '{}'::json").fetchone() == ({},)
        pids.append(connection.info.backend_pid)
        for statement in LEFT.values() if run.entity_id == "1" else ():
            connection.execute(statement)
        spoil(connection)
        end(run)

    def spoil(connection: Any) -> None:
        set_json_loads(lambda text: "spoilt", connection)
        connection.row_factory = dict_row
        connection.prepare_threshold = 0
        connection.add_notice_handler(print)

    p = one_stage(work if colour == "async" else sync_work, transaction=True, concurrency=1, retry=Backoff(attempts=1))
    deployed(conn, p)
    for entity in ("1", "2"):
        p.submit(conn, entity, Post())
    with role(admin_dsn, "lesser"):
        drain(p, dsn)
    assert status_of(conn, "1") == ("DONE" if ending == "committed" else "NEW")
    assert status_of(conn, "2") == "DONE"
    assert len(set(pids)) == 1, "or the test shows nothing"
    assert [name for name, left in zip(LEFT, seen[1], strict=True) if left] == []


IN_THE_WAY = {
    "a role without rights": ["SET LOCAL ROLE lesser"],
    "a role of the session": ["SET ROLE lesser"],
    "an empty search_path": ["SET LOCAL search_path = ''"],
    "a schema before pg_catalog": ["SET LOCAL search_path = shadow, pg_catalog"],
    "nulls in arrays": ["SET LOCAL array_nulls = off"],
    "strings with escapes": ["SET LOCAL standard_conforming_strings = off"],
    "an encoding": ["SET LOCAL client_encoding = 'LATIN1'"],
    "an ascii encoding": ["SET LOCAL client_encoding = 'SQL_ASCII'"],
    "a style": ["SET LOCAL DateStyle = 'SQL, DMY'", "SET LOCAL IntervalStyle = 'sql_standard'"],
    "a short timeout": ["SET LOCAL lock_timeout = '1ms'", "SET LOCAL row_security = off"],
}


@pytest.mark.parametrize("statements", IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_what_a_handler_sets_is_not_in_the_way_of_the_commit(
    conn: Conn, dsn: str, admin_dsn: str, statements: list[str]
) -> None:
    async def work(run: Run[Post]) -> Post:
        run.publish("t", {"said": "Ж"}, headers={"a": "b"})
        for statement in statements:
            await run.connection.execute(statement)
        return Post(content="Ж")

    with role(admin_dsn, "lesser"), psycopg.connect(admin_dsn, autocommit=True) as admin:
        for shadow in SHADOWS.strip().split("\n"):
            admin.execute(shadow.encode())
        run_one(conn, dsn, work, transaction=True, retry=Backoff(attempts=1))
        assert value(conn, "SELECT error FROM outbox.dead_jobs") is None
        assert status_of(conn, "a") == "DONE"
        assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "Ж"


def test_a_superuser_who_puts_triggers_off_does_not_put_off_ours(conn: Conn, admin_dsn: str) -> None:
    async def work(run: Run[Post]) -> None:
        await run.connection.execute("SET LOCAL session_replication_role = replica")

    run_one(conn, admin_dsn, work, transaction=True)
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 2, "the history is complete"
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_what_a_schedule_sets_is_not_in_the_way_of_its_next_tick(
    conn: Conn, dsn: str, admin_dsn: str, colour: str
) -> None:
    p = one_stage(lambda run: None)
    odd = "SET LOCAL ROLE lesser; SET LOCAL DateStyle = 'German'; SET LOCAL search_path = ''"

    async def yearly(tick: Tick) -> None:
        await tick.connection.execute(odd)

    def sync_yearly(tick: Tick) -> None:
        tick.connection.execute(odd)

    p.every("0 0 1 1 *", name="yearly")(yearly if colour == "async" else sync_yearly)
    deployed(conn, p)
    conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 second'")
    with role(admin_dsn, "lesser"):
        drain(p, dsn)
    assert conn.execute("SELECT ran_at IS NOT NULL, attempts, error FROM outbox.schedules").fetchone() == (
        True,
        0,
        None,
    )


def test_a_database_in_latin1_works_or_says_what_it_cannot_store(server: PostgresServer) -> None:
    with server.admin() as admin:
        admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    dsn = server.dsn("latin", "postgres")
    migrations.apply(dsn)
    results = {"fine": "ü", "odd": "Ж"}

    def work(run: Run[Post]) -> Post:
        if run.entity_id == "raises":
            raise ValueError("no such thing: Ж")
        return Post(content=results[run.entity_id])

    p = one_stage(work, retry=Backoff(attempts=1))
    with psycopg.connect(dsn, autocommit=True) as conn:
        deployed(conn, p)
        for entity in ("fine", "odd", "raises"):
            p.submit(conn, entity, Post())
        with pytest.raises((InvalidInput, psycopg.DataError)) as refused:
            p.submit(conn, "refused", Post(content="Ж"))
        assert "latin-1" in str(refused.value)
        drain(p, dsn)
        errors = dict(conn.execute("SELECT entity_id, error FROM outbox.dead_jobs").fetchall())
        assert status_of(conn, "fine") == "DONE"
        assert "LATIN1" in errors["odd"]
        assert errors["raises"].startswith("ValueError: no such thing: ?")
        assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
