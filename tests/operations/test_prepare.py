"""`outbox.migrate` and `outbox.deploy`: what the commands of these names do, from Python."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

import outbox
from kit.pipelines import make_posts, value
from outbox import InvalidInput, Pipeline, SchemaError, SettingsError, Stranded
from outbox.database import migrations

Conn = psycopg.Connection[Any]


def notes() -> Pipeline[Any]:
    return Pipeline("notes", initial="NEW", final={"NEW"})


def test_migrate_takes_a_dsn_or_a_connection_and_says_what_it_applied(empty_dsn: str) -> None:
    names = [migration.name for migration in migrations.all_migrations()]
    assert outbox.migrate(empty_dsn) == names
    with psycopg.connect(empty_dsn) as conn:
        assert outbox.migrate(conn) == []
        assert not conn.closed
        assert outbox.deploy(conn, make_posts()).keys() == {"posts"}


def test_migrate_in_the_caller_s_transaction_is_a_part_of_it(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, row_factory=dict_row) as conn:
        with conn.transaction(force_rollback=True):
            assert outbox.migrate(conn)
            assert outbox.migrate(conn) == []
        assert conn.execute("SELECT to_regclass('outbox.workflow_states') AS found").fetchone() == {"found": None}


def test_deploy_says_for_each_pipeline_what_has_changed(conn: Conn) -> None:
    changes = outbox.deploy(conn, [make_posts(), notes()])
    assert changes["notes"] == ["initial status: (none) -> NEW", "new status NEW (final)"]
    assert "new legal change RECEIVED -> ENRICHED" in changes["posts"]
    assert outbox.deploy(conn, (make_posts(), notes())) == {"posts": [], "notes": []}


def test_deploy_writes_all_pipelines_or_none(conn: Conn) -> None:
    outbox.deploy(conn, make_posts())
    make_posts().submit(conn, "a", {"content": "hello"})
    shorter = Pipeline("posts", initial="NEW", final={"NEW"})
    with pytest.raises(Stranded) as refused:
        outbox.deploy(conn, [notes(), shorter])
    assert refused.value.workflows == {"RECEIVED": 1}
    assert value(conn, "SELECT array_agg(pipeline) FROM outbox.pipelines") == ["posts"]


def test_deploy_in_the_caller_s_transaction_is_a_part_of_it_and_leaves_its_settings(conn: Conn) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL lock_timeout = '1234ms'")
        outbox.deploy(conn, make_posts())
        assert value(conn, "SHOW lock_timeout") == "1234ms"
    assert value(conn, "SELECT count(*) FROM outbox.pipelines") == 0


def test_a_database_without_the_schema_is_refused(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as conn, pytest.raises(SchemaError, match="outbox migrate"):
        outbox.deploy(conn, notes())


def test_a_dsn_that_cannot_be_read_is_refused_without_its_password() -> None:
    with pytest.raises(SettingsError, match="can't read the DSN") as refused:
        outbox.migrate("postgresql://sarah:se/cret@localhost/shop")
    assert "cret" not in str(refused.value)


@pytest.mark.parametrize("where", [None, 5, b"postgresql://"])
def test_what_is_neither_a_dsn_nor_a_connection_is_refused(where: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^conn: must be a connection or session of psycopg, "):
        outbox.migrate(where)
    with pytest.raises(InvalidInput, match=r"^conn: must be a connection or session of psycopg, "):
        outbox.deploy(where, notes())


@pytest.mark.parametrize("pipelines", [None, "posts", [notes(), "posts"]])
def test_what_is_no_pipeline_is_refused(conn: Conn, pipelines: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^pipelines: .* is not a Pipeline"):
        outbox.deploy(conn, pipelines)


def test_async_connections_are_awaited_and_what_is_no_connection_is_refused(dsn: str) -> None:
    async def prepare() -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            assert await outbox.migrate(conn) == []
            assert (await outbox.deploy(conn, notes()))["notes"] != []
            cursor = conn.cursor()
        with pytest.raises(InvalidInput, match="is a cursor: pass its connection"):
            await outbox.migrate(cursor)  # type: ignore[call-overload]
        with pytest.raises(InvalidInput, match="must be a connection or session of"):
            outbox.deploy(5, notes())  # type: ignore[call-overload]

    asyncio.run(prepare())
    with psycopg.connect(dsn) as conn:
        assert outbox.deploy(conn, notes()) == {"notes": []}, "it was committed"
