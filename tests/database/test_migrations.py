"""Migrations: forward only, safe to run at once and after a crash between two; on every Postgres that is supported."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg
import pytest

from kit.commands import Outbox
from kit.databases import OWNER, janitor, make_database
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import DEADLINE, PostgresServer, versions
from outbox import SchemaError
from outbox.database import migrations, schema

Conn = psycopg.Connection[Any]


def test_applying_twice_changes_nothing_and_pending_tells_what_is_missing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        names = [migration.name for migration in schema.all_migrations()]
        assert [migration.name for migration in migrations.pending(conn)] == names
        with pytest.raises(SchemaError, match="outbox migrate"):
            migrations.require(conn)
        assert migrations.apply(conn) == names
        assert migrations.apply(empty_dsn) == []
        assert migrations.pending(conn) == []
        migrations.require(conn)


def test_many_processes_may_migrate_at_once(empty_dsn: str) -> None:
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda: done.append(migrations.apply(empty_dsn))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert sorted(name for names in done for name in names) == sorted(
        migration.name for migration in schema.all_migrations()
    )


def test_k12_a_crash_between_two_migrations_is_carried_on_from(empty_dsn: str) -> None:
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from outbox.database import migrations; migrations.apply(sys.argv[1])",
            empty_dsn,
        ],
        env={**os.environ, "OUTBOX_KILL_AT": "K12:3"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        names = [migration.name for migration in schema.all_migrations()]
        assert [migration.name for migration in migrations.pending(conn)] == names[3:]
        with pytest.raises(SchemaError, match=f"missing {names[3]}"):
            migrations.require(conn)
        assert migrations.apply(conn) == names[3:]


def test_a_crash_before_the_functions_leaves_a_schema_that_no_worker_uses(empty_dsn: str) -> None:
    steps = len(schema.transactions()) - 1
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from outbox.database import migrations; migrations.apply(sys.argv[1])",
            empty_dsn,
        ],
        env={**os.environ, "OUTBOX_KILL_AT": f"K12:{steps}"},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        functions = [migration.name for migration in schema.transactions()[-1]]
        with pytest.raises(
            SchemaError, match=f"older than this Outbox .missing {', '.join(functions)}.. Run: outbox migrate"
        ):
            migrations.require(conn)
        assert migrations.apply(conn) == functions
        migrations.require(conn)


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> str:
    """The hash of a text of functions/waits that an earlier release has shipped."""
    shipped = {**schema.history(), "functions/waits": ["0ld", *schema.history()["functions/waits"]]}
    monkeypatch.setattr(migrations, "history", lambda: shipped)
    return "0ld"


def make_waits_another(conn: Conn, text_hash: str) -> None:
    """Give the database a function of another release, whose text has this hash."""
    conn.execute("UPDATE outbox.schema_migrations SET hash = %s WHERE name = 'functions/waits'", [text_hash])
    conn.execute(
        "CREATE OR REPLACE FUNCTION outbox.waits_end(ids uuid[], tos text[], actor text, reason text) RETURNS void "
        "LANGUAGE plpgsql AS $$ BEGIN NULL; END $$"
    )


def waits_end(conn: Conn) -> str:
    return str(value(conn, "SELECT prosrc FROM pg_proc WHERE proname = 'waits_end'"))


def test_functions_of_an_earlier_release_are_replaced(conn: Conn, released: str, outbox: Outbox) -> None:
    ours = waits_end(conn)
    make_waits_another(conn, released)
    with pytest.raises(SchemaError, match=r"older than this Outbox \(older functions/waits\)\. Run: outbox migrate"):
        migrations.require(conn)
    assert outbox("migrate", "--check", code=1).out == "changed functions/waits\n"
    assert waits_end(conn) != ours, "looking has changed nothing"
    assert outbox("migrate").out.splitlines() == ["applied functions/waits", "the schema is up to date"]
    assert waits_end(conn) == ours
    migrations.require(conn)


def test_the_script_for_psql_replaces_functions_too(conn: Conn, released: str) -> None:
    ours = waits_end(conn)
    make_waits_another(conn, released)
    script = migrations.script(conn).encode()
    conn.execute(script)
    assert waits_end(conn) == ours
    assert migrations.pending(conn) == []
    make_waits_another(conn, "of a later release")
    with pytest.raises(psycopg.errors.RaiseException, match="the schema has changed since this script was printed"):
        conn.execute(script)
    conn.rollback()
    assert waits_end(conn) != ours


def test_functions_of_a_later_release_are_left_alone_and_do_not_stop_a_worker(
    conn: Conn, dsn: str, outbox: Outbox
) -> None:
    ours = waits_end(conn)
    make_waits_another(conn, "of a later release")
    conn.execute("DELETE FROM outbox.schema_migrations WHERE name IN ('0006_inbox', 'functions/inbox')")
    told = "the database has functions/waits of a later release, and this Outbox doesn't put its own over them"
    for refused in (lambda: migrations.apply(conn), lambda: migrations.script(conn)):
        with pytest.raises(SchemaError, match=told):
            refused()
    assert told in outbox("migrate", code=1).err
    assert waits_end(conn) != ours
    assert [migration.name for migration in migrations.pending(conn)] == ["0006_inbox", "functions/inbox"], (
        "nothing was applied"
    )
    assert migrations.newer(conn) == ["functions/waits"]
    conn.execute(
        "INSERT INTO outbox.schema_migrations (name, hash) VALUES ('0006_inbox', NULL), ('functions/inbox', %s)",
        [next(each.hash for each in schema.all_migrations() if each.name == "functions/inbox")],
    )
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    drain(posts, dsn)
    assert status_of(conn, "a") == "COMPLETED"


def test_a_file_that_a_later_release_has_added_is_left_alone_too(conn: Conn) -> None:
    conn.execute("INSERT INTO outbox.schema_migrations (name, hash) VALUES ('functions/from_the_future', 'x')")
    assert migrations.newer(conn) == ["functions/from_the_future"]
    with pytest.raises(SchemaError, match="functions/from_the_future of a later release"):
        migrations.apply(conn)
    migrations.require(conn)


def test_a_database_from_before_the_first_release_is_told_what_to_do_and_is_not_touched(empty_dsn: str) -> None:
    names = ["0001_pipelines", "0002_workflows", "0020_orchestrator"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(
            "CREATE TABLE outbox.schema_migrations (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        conn.execute("INSERT INTO outbox.schema_migrations (name) SELECT unnest(%s::text[])", [names])
        told = (
            "this database was made by an Outbox from before the first release and can't be migrated: "
            f"it has {', '.join(names)}. Dump what you need of the schema outbox, then run: "
            "DROP SCHEMA outbox CASCADE, outbox migrate, outbox deploy"
        )
        for refused in (migrations.apply, migrations.pending, migrations.newer, migrations.script, migrations.require):
            with pytest.raises(SchemaError, match=re.escape(told)):
                refused(conn)
        for arguments in (["migrate"], ["migrate", "--check"], ["migrate", "--sql"], ["status"], ["doctor"]):
            assert told in Outbox(empty_dsn)(*arguments, code=1).err
        assert conn.execute("SELECT name FROM outbox.schema_migrations ORDER BY 1").fetchall() == [
            (name,) for name in names
        ]
        tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r'"
        assert value(conn, tables) == 1


@pytest.mark.parametrize(
    ("statement", "lost", "refused"),
    [
        ("ALTER TABLE outbox.pauses RENAME paused_by TO by_whom", "comments", "comments can't be applied: column"),
        ("DROP TABLE outbox.pauses CASCADE", "comments", "comments can't be applied: relation"),
        ("SELECT 1", "0006_inbox", "0006_inbox can't be applied: relation"),
    ],
)
def test_a_database_between_two_releases_is_told_what_to_do(
    conn: Conn, outbox: Outbox, statement: LiteralString, lost: str, refused: str
) -> None:
    conn.execute(statement)
    conn.execute("DELETE FROM outbox.schema_migrations WHERE name = %s", [lost])
    with pytest.raises(SchemaError, match=refused) as caught:
        migrations.apply(conn)
    assert "DROP SCHEMA outbox CASCADE, outbox migrate, outbox deploy" in str(caught.value)
    assert refused in outbox("migrate", code=1).err


@pytest.mark.parametrize("version", versions())
def test_what_can_be_replaced_is_applied_over_itself(
    version: str, make_server: Callable[[str], PostgresServer]
) -> None:
    server = make_server(version)
    with janitor(server, "twice"), psycopg.connect(server.dsn("twice"), autocommit=True) as conn:
        migrations.apply(conn)
        before = value(conn, OBJECTS)
        replaceable = [migration.name for migration in schema.all_migrations() if migration.hash]
        conn.execute("DELETE FROM outbox.schema_migrations WHERE hash IS NOT NULL")
        assert migrations.apply(conn) == replaceable
        assert value(conn, OBJECTS) == before


# All functions, triggers and views, with their texts, settings and rights.
OBJECTS = """
SELECT array_agg(o ORDER BY o) FROM (
    SELECT concat_ws(' ', p.oid::regprocedure, p.prosrc, p.proconfig, p.prosecdef, p.proacl) FROM pg_proc AS p
    WHERE p.pronamespace = 'outbox'::regnamespace
    UNION ALL SELECT pg_get_triggerdef(t.oid) FROM pg_trigger AS t WHERE t.tgrelid::regclass::text LIKE 'outbox.%'
    UNION ALL SELECT viewname || definition FROM pg_views WHERE schemaname = 'outbox'
) AS o (o)
"""


def test_the_script_for_psql_makes_the_same_schema(empty_dsn: str, conn: Conn) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as other:
        other.execute(migrations.script(other).encode())
        assert migrations.pending(other) == []
        columns = (
            "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns "
            "WHERE table_schema = 'outbox' ORDER BY 1, ordinal_position"
        )
        assert other.execute(columns).fetchall() == conn.execute(columns).fetchall()


def test_a_newer_schema_is_named_and_does_not_stop_an_older_worker(conn: Conn, dsn: str) -> None:
    conn.execute("INSERT INTO outbox.schema_migrations (name) VALUES ('9999_from_the_future')")
    assert migrations.newer(conn) == ["9999_from_the_future"]
    posts = deployed(conn)
    posts.submit(conn, "a", Post())
    drain(posts, dsn)
    assert status_of(conn, "a") == "COMPLETED"


def test_a_role_without_a_schema_of_its_own_is_told_by_postgres(server: PostgresServer) -> None:
    with janitor(server, "strangers"), pytest.raises(psycopg.errors.InsufficientPrivilege):
        migrations.apply(server.dsn("strangers", OWNER))


@pytest.mark.parametrize("version", versions())
def test_a_pipeline_runs_on_every_supported_postgres(
    version: str, make_server: Callable[[str], PostgresServer]
) -> None:
    dsn = make_database(make_server(version), "app")
    migrations.apply(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert str(value(conn, "SHOW server_version")).startswith(version)
        posts = deployed(conn)
        posts.submit_many(conn, ((f"e{n}", Post(content="risky" if n % 2 else "calm")) for n in range(50)))
        conn.execute(
            "INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata) VALUES ('posts', 'sql', '{\"content\": \"x\"}')"
        )
        drain(posts, dsn)
        conn.execute(
            "UPDATE outbox.workflow_states SET current_status = 'APPROVED' WHERE current_status = 'WAITING_FOR_REVIEW'"
        )
        drain(posts, dsn)
        assert value(conn, "SELECT workflows FROM outbox.overview WHERE status = 'COMPLETED'") == 51
        assert str(value(conn, "SELECT outbox.uuid7()"))[14] == "7"
