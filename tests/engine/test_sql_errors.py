"""An error of SQL inside a step is told without the statements around it: in the job, its traceback and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy

from kit.pipelines import Post, deployed, value
from kit.pipelines import drain as run_due
from outbox import Backoff, Pipeline, Run
from outbox.definition.reasons import describe, traceback_of

Conn = psycopg.Connection[Any]

DEEP = """
DO $$ BEGIN
    EXECUTE 'SELECT 1 / 0 -- {filler}';
END $$
""".format(filler="filler " * 200)


def plain(run: Run[Post]) -> None:
    run.connection.execute(DEEP.encode())


def grouped(run: Run[Post]) -> None:
    try:
        plain(run)
    except psycopg.Error as error:
        raise ExceptionGroup("several", [error, ValueError("another")]) from None


def caused(run: Run[Post]) -> None:
    try:
        plain(run)
    except psycopg.Error as error:
        raise RuntimeError("it failed") from error


def illegal(run: Run[Post]) -> None:
    run.connection.execute("UPDATE outbox.workflow_states SET current_status = 'NEW' WHERE entity_id = 'other'")


@pytest.mark.parametrize(
    ("handler", "said"),
    [(plain, "DivisionByZero: division by zero"), (grouped, "division by zero"), (caused, "RuntimeError: it failed"),
     (illegal, "pipeline \"posts\"")],
    ids=lambda each: getattr(each, "__name__", None),
)  # fmt: skip
def test_no_statement_is_in_the_error_of_a_step(
    conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture, handler: Callable[[Run[Post]], None], said: str
) -> None:
    posts = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})
    posts.stage("act", on="NEW", to="DONE", transaction=True, retry=Backoff(attempts=1))(handler)
    posts.allow("NEW", to="DONE")
    deployed(conn, posts)
    posts.submit(conn, "a", Post(content="x"))
    posts.submit(conn, "other", Post(content="x"))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE' WHERE entity_id = 'other'")
    with caplog.at_level(logging.DEBUG):
        run_due(posts, dsn)
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    traceback = value(conn, "SELECT traceback FROM outbox.dead_jobs")
    assert said in error
    logged = "".join(record.getMessage() + (record.exc_text or "") for record in caplog.records)
    for text in (error, traceback, logged):
        assert "PL/pgSQL" not in text, text
        assert "filler" not in text
        assert "CONTEXT" not in text
    assert len(error) < 700
    assert "test_sql_errors.py" in traceback


def raised_in(execute: Callable[[], object]) -> BaseException:
    try:
        execute()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg like"])
def test_what_an_orm_wraps_has_neither_statement_nor_parameters(dsn: str, driver: str) -> None:
    if driver == "asyncpg like":  # its errors have the message only, and no diag
        error: BaseException = sqlalchemy.exc.DBAPIError(
            "INSERT filler", {"a": "filler"}, Exception("division by zero")
        )
    else:
        engine = sqlalchemy.create_engine(dsn.replace("postgresql:", f"postgresql+{driver}:"))
        with engine.connect() as connection:
            text = sqlalchemy.text(DEEP.replace(":", r"\:") if driver == "psycopg" else DEEP)
            error = raised_in(lambda: connection.execute(text))
        engine.dispose()
    for told in (describe(error), traceback_of(error)):
        assert "division by zero" in told
        assert "filler" not in told, told
        assert "PL/pgSQL" not in told


def test_detail_and_hint_stay(conn: Conn) -> None:
    conn.execute("CREATE TEMPORARY TABLE t (id integer PRIMARY KEY)")
    error = raised_in(lambda: conn.execute("INSERT INTO t VALUES (1), (1)"))
    assert "Key (id)=(1) already exists." in describe(error)
    error = raised_in(lambda: conn.execute("SELECT idd FROM t"))
    assert "HINT" in describe(error)
