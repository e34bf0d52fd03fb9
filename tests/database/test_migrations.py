"""Migrations: forward only, safe to run at once and after a crash between two; on every Postgres that is supported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.databases import OWNER, make_database
from kit.pipelines import Post, deployed, drain, status_of, value
from kit.servers import DEADLINE, PostgresServer, versions
from outbox import SchemaError
from outbox.database import migrations

Conn = psycopg.Connection[Any]


def test_applying_twice_changes_nothing_and_pending_tells_what_is_missing(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        names = [migration.name for migration in migrations.all_migrations()]
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
    assert sorted(name for names in done for name in names) == [
        migration.name for migration in migrations.all_migrations()
    ]


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
        names = [migration.name for migration in migrations.all_migrations()]
        assert [migration.name for migration in migrations.pending(conn)] == names[3:]
        with pytest.raises(SchemaError, match=f"missing {names[3]}"):
            migrations.require(conn)
        assert migrations.apply(conn) == names[3:]


def test_the_script_for_psql_makes_the_same_schema(empty_dsn: str, conn: Conn) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as other:
        other.execute(migrations.script(migrations.pending(other)).encode())
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
    make_database(server, "strangers", "template0")
    try:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            migrations.apply(server.dsn("strangers", OWNER))
    finally:
        with server.admin() as admin:
            admin.execute("DROP DATABASE strangers WITH (FORCE)")


@pytest.mark.parametrize("version", versions())
def test_a_pipeline_runs_on_every_supported_postgres(
    version: str, make_server: Callable[[str], PostgresServer]
) -> None:
    server = make_server(version)
    with server.admin() as admin:
        admin.execute(f"CREATE ROLE {OWNER} LOGIN")
    make_database(server, "app")
    dsn = server.dsn("app", OWNER)
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
