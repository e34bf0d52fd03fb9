"""`outbox.migrate` and `outbox.deploy` on the connections that applications hold, in their transactions."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

import outbox
from kit.drivers import KINDS, held
from kit.pipelines import value
from outbox import Go, Pipeline, Run, Stranded
from outbox.database import migrations
from outbox.database.drivers import spelling

Conn = psycopg.Connection[Any]
SOME = ["psycopg async", "psycopg2", "asyncpg", "django", "sqlalchemy connection psycopg", "sqlalchemy session psycopg2",
        "sqlalchemy session pg8000", "sqlalchemy async session asyncpg", "sqlalchemy async connection psycopg_async"]  # fmt: skip


class Order(BaseModel):
    customer: str = "%s"
    total: int = 0


def shop(*, renamed: bool = False) -> Pipeline[Order]:
    """Returns a pipeline with something of all that a deploy writes."""
    waiting = "IN_REVIEW" if renamed else "WAITING"
    pipeline = Pipeline("shop", data=Order, initial="NEW", final={"DONE", "CANCELLED"}, cancelled="CANCELLED")

    @pipeline.stage("look", on="NEW", to={waiting, "DONE"}, running="LOOKING", partition="customer", priority="total",
                    concurrency=3, rate="10/second")  # fmt: skip
    async def look(run: Run[Order]) -> Go[Order]:
        return Go(waiting)

    @pipeline.on_change("DONE")
    async def told(run: Run[Any]) -> None: ...

    @pipeline.every("0 5 * * *", timezone="Europe/Paris")
    async def nightly(tick: outbox.Tick) -> None: ...

    pipeline.allow(waiting, to={"DONE", "CANCELLED"})
    pipeline.deadline(waiting, days=2, to="CANCELLED")
    if renamed:
        pipeline.rename("WAITING", "IN_REVIEW")
    return pipeline


def tables(dsn: str) -> int:
    with psycopg.connect(dsn) as conn:
        return int(value(conn, "SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace"))


class Undo(Exception):
    pass


@pytest.mark.parametrize("kind", SOME)
def test_migrate_and_deploy_are_parts_of_the_caller_s_transaction(kind: str, empty_dsn: str) -> None:
    names = [migration.name for migration in migrations.all_migrations()]
    with suppress(Undo), held(kind, empty_dsn) as there:
        assert there.call(outbox.migrate, there.conn) == names
        raise Undo
    assert tables(empty_dsn) == 0
    with held(kind, empty_dsn) as there:
        assert there.call(outbox.migrate, there.conn) == names
        assert there.call(outbox.migrate, there.conn) == []
        first = there.call(outbox.deploy, there.conn, shop())
        assert there.call(outbox.deploy, there.conn, shop()) == {"shop": []}
    with psycopg.connect(empty_dsn) as conn:
        assert outbox.migrate(conn) == []
        assert outbox.deploy(conn, shop()) == {"shop": []}
        conn.rollback()
        pipeline = shop()
        pipeline.submit(conn, "a", Order())
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'WAITING'")
    with held(kind, empty_dsn) as there:
        stricter = Pipeline("shop", data=Order, initial="NEW", final={"NEW"})
        with pytest.raises(Stranded, match="no longer knows status WAITING"):
            there.call(outbox.deploy, there.conn, stricter)
        changes = there.call(outbox.deploy, there.conn, shop(renamed=True))
    assert "status WAITING is renamed to IN_REVIEW" in changes["shop"]
    with psycopg.connect(empty_dsn) as conn:
        assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "IN_REVIEW"
        assert outbox.deploy(conn, shop(renamed=True)) == {"shop": []}
        assert first["shop"], "it has said what is new"


@pytest.mark.parametrize("kind", ["asyncpg", "sqlalchemy connection psycopg", "django"])
def test_a_deploy_that_waits_in_vain_says_so_and_leaves_the_transaction_usable(
    kind: str, conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.definition import deploy

    monkeypatch.setattr(deploy, "TABLE_PATIENCE", (0.01, 0.02))
    outbox.deploy(conn, shop())
    shop().submit(conn, "a", Order())
    with psycopg.connect(dsn) as other:
        other.execute("SELECT 1 FROM outbox.workflow_states FOR UPDATE")
        with held(kind, dsn) as there:
            with pytest.raises(psycopg.errors.LockNotAvailable, match="nothing was written: a transaction that has"):
                there.call(outbox.deploy, there.conn, shop(renamed=True))
            assert there.call(outbox.migrate, there.conn) == []


def test_each_kind_of_connection_is_tried_here_or_is_like_one_that_is() -> None:
    assert set(SOME) <= set(KINDS)


def test_scripts_are_cut_at_the_ends_of_their_commands() -> None:
    script = """
    -- one; two
    SELECT ';', ";" /* ; */;;
    CREATE FUNCTION f() RETURNS text AS $f$ BEGIN; SELECT $$;$$; END; $f$; DO $$ ; $$
    ; CREATE FUNCTION g() RETURNS int
BEGIN ATOMIC
    SELECT CASE WHEN true THEN 1 END; SELECT 2;
END;
    -- the end;
    """
    assert [command.split()[-1] for command in spelling.commands(script)] == ["*/", "$f$", "$$", "END"]
