"""A drain, an attempt and the rest on Django's own connection and on sessions of SQLAlchemy, inside their transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy
from asgiref.sync import sync_to_async
from django.db import DataError, connection, connections, transaction
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import Session

import kit.drivers  # noqa: F401 - configures Django
from kit.pipelines import Post, deployed, one_stage, value
from outbox import InvalidInput, Pipeline, Run
from outbox.testing import advance, assert_submitted, attempt, clean, drain

Conn = psycopg.Connection[Any]


# Handlers here use Django's connection directly, as the ORM does.


@pytest.fixture
def tables(conn: Conn) -> Conn:
    conn.execute("CREATE TABLE outbox.books (entity_id text)")
    return conn


@contextmanager
def open_django(dsn: str) -> Iterator[Any]:
    """Yields Django's connection, in autocommit."""
    at = conninfo_to_dict(dsn)
    settings = connections["default"].settings_dict
    settings.update(NAME=at["dbname"], USER=at["user"], HOST=at["host"], PORT=at["port"])
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def django(dsn: str) -> Iterator[Any]:
    """Yields Django's connection, inside `atomic`, which is rolled back: as a TestCase has it."""
    with open_django(dsn), transaction.atomic():
        yield connection
        transaction.set_rollback(True)


def count(connection: Any) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM outbox.books")
        return int(cursor.fetchone()[0])


def test_on_django_s_connection_all_is_in_the_test_s_transaction(tables: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        with connection.cursor() as cursor:  # the ORM's own connection
            cursor.execute("INSERT INTO outbox.books VALUES (%s)", [run.entity_id])

    def book(run: Run[Post]) -> None:
        run.connection.execute("INSERT INTO outbox.books VALUES (%s)", [run.entity_id])

    p = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    p.stage("work", on="NEW", to="THEN")(work)
    p.stage("book", on="THEN", to="DONE", transaction=True)(book)
    deployed(tables, p)
    with django(dsn):
        p.submit(connection, "a", Post())
        assert drain(p, connection).counts.done == 2
        assert_submitted(connection, p, count=1, status="DONE")
        assert count(connection) == 2
        attempt(p, "book", Post(), connection=connection)
        assert count(connection) == 3
        assert advance(connection, timedelta(hours=1)) == {}
        assert clean(connection) == 1
    assert value(tables, "SELECT count(*) FROM outbox.workflow_states") == 0
    assert value(tables, "SELECT count(*) FROM outbox.books") == 0


def test_an_error_of_django_s_orm_in_a_handler_leaves_the_test_s_transaction_usable(tables: Conn, dsn: str) -> None:
    def work(run: Run[Post]) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1/0")

    p = deployed(tables, one_stage(work))
    with django(dsn):
        p.submit(connection, "a", Post())
        with pytest.raises(DataError):
            drain(p, connection)
        assert count(connection) == 0


def test_an_async_handler_uses_django_s_orm_on_the_test_s_connection(tables: Conn, dsn: str) -> None:
    def write(entity: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO outbox.books VALUES (%s)", [entity])

    async def work(run: Run[Post]) -> None:
        await sync_to_async(write)(run.entity_id)

    p = deployed(tables, one_stage(work))
    with django(dsn):
        p.submit(connection, "a", Post())
        drain(p, connection)
        assert count(connection) == 1


def test_outside_a_transaction_of_django_it_is_said(tables: Conn, dsn: str) -> None:
    p = deployed(tables, one_stage(lambda run: None))
    with open_django(dsn), pytest.raises(InvalidInput, match="is in autocommit"):
        drain(p, connection)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_session_of_sqlalchemy_that_is_rolled_back(tables: Conn, dsn: str, driver: str) -> None:
    def book(run: Run[Post]) -> None:
        run.connection.execute("INSERT INTO outbox.books VALUES (%s)", [run.entity_id])

    p = deployed(tables, one_stage(book, transaction=True))
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", f"postgresql+{driver}://"))
    with Session(engine) as session:
        p.submit(session, "a", Post())
        if driver == "psycopg2":
            with pytest.raises(InvalidInput, match="of psycopg 3"):
                drain(p, session)
            return
        drain(p, session)
        assert_submitted(session, p, status="DONE")
        assert session.execute(sqlalchemy.text("SELECT count(*) FROM outbox.books")).scalar() == 1
        session.rollback()
    engine.dispose()
    assert value(tables, "SELECT count(*) FROM outbox.workflow_states") == 0
