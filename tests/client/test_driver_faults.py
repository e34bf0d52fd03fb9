"""A connection of any kind that is lost, failed, behind others or behind PgBouncer: a typed error, and nothing half done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import django.db
import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.db import transaction

from kit import django_project
from kit.drivers import held, url
from kit.pipelines import Post, deployed, one_stage, status_of, value
from kit.pooler import Pooler
from outbox import NoWorkflow, OutboxError, Pipeline, decide
from outbox.database.drivers.recognise import door
from outbox.database.refusals import sqlstate_of

Conn = psycopg.Connection[Any]
OF_DRIVERS = (
    psycopg.Error,
    psycopg2.Error,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    sqlalchemy.exc.SQLAlchemyError,
    django.db.Error,
)
EACH_DRIVER = [
    "psycopg", "psycopg async", "psycopg2", "asyncpg", "django", "sqlalchemy session psycopg", "sqlalchemy session pg8000",
    "sqlalchemy async session asyncpg",
]  # fmt: skip
kinds = pytest.mark.parametrize("kind", EACH_DRIVER)


class Ours(Exception):
    """Rolls back what a test has begun."""


@pytest.fixture
def work(conn: Conn) -> Pipeline[Post]:
    pipeline = one_stage(lambda run: None)
    pipeline.allow("NEW", to="LATER")
    return deployed(conn, pipeline)


def workflows(conn: Conn) -> int:
    return int(value(conn, "SELECT count(*) FROM outbox.workflow_states"))


@kinds
def test_a_connection_that_is_lost_is_the_drivers_error_and_leaves_nothing(
    kind: str, work: Pipeline[Post], conn: Conn, dsn: str
) -> None:
    lost = pytest.raises(OF_DRIVERS)
    with suppress(Ours, *OF_DRIVERS), held(kind, dsn) as app:
        app.call(work.submit, app.conn, "a", Post())
        others = (
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert conn.execute(others).fetchall() == [(True,)]
        for _ in range(2):
            with lost as caught:
                app.call(work.submit, app.conn, "b", Post())
            assert not isinstance(caught.value, OutboxError)
        raise Ours  # no driver may take it for a commit
    assert workflows(conn) == 0


@kinds
def test_a_transaction_that_has_failed_says_so_and_its_rollback_makes_it_usable(
    kind: str, work: Pipeline[Post], conn: Conn, dsn: str
) -> None:
    with suppress(Ours), held(kind, dsn) as app:
        with pytest.raises(NoWorkflow):
            app.call(decide, app.conn, work, "nothing", "approve")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any driver
            app.call(work.submit, app.conn, "a", Post())
        # Django knows by itself that it may send no more.
        assert sqlstate_of(caught.value) == "25P02" or isinstance(caught.value, transaction.TransactionManagementError)
        raise Ours
    with held(kind, dsn) as app:
        assert app.call(work.submit, app.conn, "b", Post()).created
    assert workflows(conn) == 1


@kinds
def test_at_a_higher_isolation_level_a_conflict_is_the_drivers_error(
    kind: str, work: Pipeline[Post], conn: Conn, dsn: str
) -> None:
    work.submit(conn, "a", Post())
    with suppress(Ours), held(kind, dsn) as app:
        app.call(door(app.conn).run, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert app.call(work.get, app.conn, "a").status == "NEW"
        assert app.call(work.submit, app.conn, "b", Post()).created
        work.move(conn, "a", "LATER")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any driver
            app.call(work.move, app.conn, "a", "DONE")
        assert sqlstate_of(caught.value) == "40001"
        assert not isinstance(caught.value, OutboxError)
        raise Ours
    assert (status_of(conn, "a"), workflows(conn)) == ("LATER", 1)


@pytest.mark.parametrize("kind", ["psycopg", "psycopg2", "sqlalchemy session psycopg"])
def test_another_thread_submits_in_the_same_transaction(kind: str, work: Pipeline[Post], conn: Conn, dsn: str) -> None:
    with held(kind, dsn) as app:
        in_thread(lambda: work.submit(app.conn, "a", Post()))
        assert app.call(work.submit, app.conn, "b", Post()).created
        assert workflows(conn) == 0
    assert workflows(conn) == 2


def test_djangos_connection_of_another_thread_is_djangos_error(work: Pipeline[Post], conn: Conn, dsn: str) -> None:
    with django_project.database(dsn), transaction.atomic():
        mine = django.db.connections["default"]
        with pytest.raises(django.db.DatabaseError, match="created in a thread can only be used in that same thread"):
            in_thread(lambda: work.submit(mine, "a", Post()))
        assert work.submit(mine, "b", Post()).created
    assert workflows(conn) == 1


def in_thread(function: Callable[[], Any]) -> Any:
    """Calls a function in another thread; returns its result, or raises its error."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    ((result, error),) = found
    if error is not None:
        raise error
    return result


POOLED = [kind for kind in EACH_DRIVER if "asyncpg" not in kind]  # which needs an option there, for any statement


@pytest.mark.parametrize("kind", POOLED)
def test_behind_a_pooler_each_call_is_part_of_its_transaction(
    kind: str, work: Pipeline[Post], conn: Conn, dsn: str, pooler: Pooler
) -> None:
    for turn in range(3):  # in sessions in which other kinds have worked
        with suppress(Ours), held(kind, pooler.dsn(dsn)) as app:
            app.call(work.submit, app.conn, f"rolled back {turn}", Post())
            raise Ours
        with held(kind, pooler.dsn(dsn)) as app:
            assert app.call(work.submit, app.conn, f"a{turn}", Post(), by="sarah").created
            assert app.call(work.move, app.conn, f"a{turn}", "LATER", reason="by hand") == "LATER"
    assert workflows(conn) == 3
    told = conn.execute("SELECT DISTINCT to_status, actor, reason FROM outbox.state_changes ORDER BY 1").fetchall()
    assert told == [("LATER", "outbox_owner", "by hand"), ("NEW", "sarah", None)]


def test_behind_a_pooler_asyncpg_needs_what_it_needs_for_any_statement(
    work: Pipeline[Post], conn: Conn, dsn: str, pooler: Pooler
) -> None:
    async def submit(entity: str) -> None:
        at = url(dsn, "asyncpg").replace("+asyncpg", "")
        app = await asyncpg.connect(at, port=pooler.port, statement_cache_size=0)
        try:
            async with app.transaction():
                await work.submit(app, entity, Post(), by="sarah")
        finally:
            await app.close()

    for entity in "abc":
        asyncio.run(submit(entity))
    assert workflows(conn) == 3
