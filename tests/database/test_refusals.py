"""An error of ours is found behind what any driver raises, with its data."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pg8000.native
import psycopg
import psycopg2
import pytest
import sqlalchemy
import sqlalchemy.orm
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import create_async_engine

import outbox
from kit.pipelines import deployed, drain
from kit.waits import QUESTION, Order, orders
from outbox import IllegalChange, InvalidInput, Refused, TooLate, TooOld, error_of
from outbox.database.refusals import raised_as_ours

TOLD = {"pipeline": "orders", "entity_id": 'ü "1"', "from_status": "NEW", "to_status": "PAID"}
MESSAGE, HINT = 'illegal change of "ü"', "ask Sarah's team"


def refuse(state: str = "OB001", detail: str = json.dumps(TOLD)) -> str:
    """Return SQL that is refused as our triggers refuse."""
    message, told, hint = (text.replace("'", "''") for text in (MESSAGE, detail, HINT))
    return (
        f"DO $do$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{state}', DETAIL = '{told}', HINT = '{hint}'; "
        "END $do$"
    )


def raised(run: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (each driver has its own)
        run()
    return caught.value


def by_psycopg(dsn: str, sql: str) -> Exception:
    with psycopg.connect(dsn) as conn:
        return raised(lambda: conn.execute(sql.encode()))


def by_a_pipeline_of_psycopg(dsn: str, sql: str) -> Exception:
    def run() -> None:
        with psycopg.connect(dsn) as conn, conn.pipeline():
            conn.execute(sql.encode())
            conn.execute("SELECT 1").fetchone()

    return raised(run)


def by_psycopg2(dsn: str, sql: str) -> Exception:
    conn = psycopg2.connect(dsn)
    try:
        return raised(lambda: conn.cursor().execute(sql))
    finally:
        conn.close()


def by_asyncpg(dsn: str, sql: str) -> Exception:
    async def run() -> None:
        conn = await asyncpg.connect(dsn)
        try:
            await conn.execute(sql)
        finally:
            await conn.close()

    return raised(lambda: asyncio.run(run()))


def by_pg8000(dsn: str, sql: str) -> Exception:
    where: dict[str, Any] = conninfo_to_dict(dsn)
    with pg8000.native.Connection(
        where["user"], host=where["host"], port=int(where["port"]), database=where["dbname"]
    ) as conn:
        return raised(lambda: conn.run(sql))


def by_sqlalchemy(driver: str) -> Callable[[str, str], Exception]:
    def run(dsn: str, sql: str) -> Exception:
        engine = sqlalchemy.create_engine(dsn.replace("postgresql://", f"postgresql+{driver}://"))
        try:
            with engine.connect() as conn:
                return raised(lambda: conn.exec_driver_sql(sql))
        finally:
            engine.dispose()

    return run


def by_sqlalchemy_on_asyncpg(dsn: str, sql: str) -> Exception:
    async def run() -> None:
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
        try:
            async with engine.connect() as conn:
                await conn.exec_driver_sql(sql)
        finally:
            await engine.dispose()

    return raised(lambda: asyncio.run(run()))


def by_django(dsn: str, sql: str) -> Exception:
    """As django.db.utils.DatabaseErrorWrapper does."""

    class DatabaseError(Exception):
        pass

    def run() -> None:
        raise DatabaseError(*refused.args) from refused

    refused = by_psycopg(dsn, sql)
    return raised(run)


def by_a_library_that_says_no_cause(dsn: str, sql: str) -> Exception:
    def run() -> None:
        try:
            raise refused
        except psycopg.Error:
            raise RuntimeError("the save failed")  # noqa: B904 (this is what is tried)

    refused = by_psycopg(dsn, sql)
    return raised(run)


WAYS = [
    by_psycopg, by_a_pipeline_of_psycopg, by_psycopg2, by_asyncpg, by_pg8000, by_sqlalchemy("psycopg"),
    by_sqlalchemy("pg8000"), by_sqlalchemy_on_asyncpg, by_django, by_a_library_that_says_no_cause,
]  # fmt: skip
NAMES = ["psycopg", "pipeline", "psycopg2", "asyncpg", "pg8000", "sqlalchemy", "sqlalchemy-pg8000",
         "sqlalchemy-asyncpg", "django", "context"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_ours_is_found_behind_the_error_of_any_driver(dsn: str, way: Callable[[str, str], Exception]) -> None:
    found = error_of(way(dsn, refuse()))
    assert type(found) is IllegalChange
    assert {name: getattr(found, name) for name in TOLD} == TOLD
    assert (str(found), found.hint, found.sqlstate) == (f"{MESSAGE} ({HINT})", HINT, "OB001")
    assert (found.diag.message_primary, found.diag.message_hint) == (MESSAGE, HINT)


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
@pytest.mark.parametrize("state", ["22012", "P0001"])
def test_what_is_not_ours_is_none(dsn: str, way: Callable[[str, str], Exception], state: str) -> None:
    assert error_of(way(dsn, refuse(state))) is None


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_an_older_database_tells_no_data_and_nothing_fails(dsn: str, way: Callable[[str, str], Exception]) -> None:
    for detail in ("Key (id)=(1) is there.", "[1]", '"text"', '{"pipeline": null}', "{" * 5_000):
        found = error_of(way(dsn, refuse(detail=detail)))
        assert type(found) is IllegalChange
        assert (found.pipeline, found.hint) == (None, HINT), detail


def test_data_have_the_types_that_their_names_promise(conn: psycopg.Connection[Any]) -> None:
    message = UUID("0198c0de-0000-7000-8000-000000000000")
    told = f"""{{"message_id": "{message}", "sent_at": "2026-01-02T03:04:05.6+00:00", "oldest": "10889-08-02T00:00:00+00"}}"""
    found = error_of(raised(lambda: conn.execute(refuse("OB007", told).encode())))
    assert isinstance(found, TooOld)
    assert (found.message_id, found.sent_at) == (message, datetime(2026, 1, 2, 3, 4, 5, 600_000, UTC))
    assert found.oldest is None, "Python has no such date"


def test_an_error_of_a_later_release_is_a_plain_refusal(conn: psycopg.Connection[Any]) -> None:
    found = error_of(raised(lambda: conn.execute(refuse("OB999").encode())))
    assert type(found) is Refused
    assert (found.sqlstate, found.hint) == ("OB999", HINT)


def test_ours_is_returned_as_it_is() -> None:
    error = InvalidInput("data", "is too large")
    assert error_of(error) is error
    wrapped = RuntimeError("no")
    wrapped.__cause__ = error
    assert error_of(wrapped) is error


def test_a_later_error_of_the_database_is_not_taken_for_the_one_that_was_handled(conn: psycopg.Connection[Any]) -> None:
    def run() -> None:
        try:
            conn.execute(refuse().encode())
        except psycopg.Error:
            conn.execute("SELECT 1 / 0")

    assert error_of(raised(run)) is None


def test_errors_that_are_each_other_s_cause_end(conn: psycopg.Connection[Any]) -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert error_of(one) is None


def test_our_calls_raise_ours_from_the_driver_s(conn: psycopg.Connection[Any]) -> None:
    told = '{"by": "tom", "at": "2026-01-02T03:04:05+00:00", "ended": "decided", "decision": "reject"}'
    with pytest.raises(TooLate) as caught, raised_as_ours():
        conn.execute(refuse("OB013", told).encode())
    assert (caught.value.by, caught.value.decision) == ("tom", "reject")
    assert type(caught.value.__cause__) is psycopg.DatabaseError
    with pytest.raises(psycopg.errors.DivisionByZero), raised_as_ours():
        conn.execute("SELECT 1 / 0")


def test_a_statement_of_one_s_own_raises_the_driver_s_error(conn: psycopg.Connection[Any]) -> None:
    """Importing Outbox changes nothing about psycopg."""
    deployed(conn)
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'a')")
    error = raised(lambda: conn.execute("UPDATE outbox.workflow_states SET current_status = 'COMPLETED'"))
    assert type(error) is psycopg.DatabaseError
    assert type(error_of(error)) is IllegalChange


def test_the_examples_in_the_docs_print_what_they_say(
    conn: psycopg.Connection[Any], dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    decided, changed = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    pipeline = deployed(conn, orders(QUESTION))
    pipeline.submit(conn, "order_7", Order())
    engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
    known = {"outbox": outbox, "orders": pipeline, "conn": conn, "sqlalchemy": sqlalchemy, "text": sqlalchemy.text}
    with sqlalchemy.orm.Session(engine) as session:
        exec(changed, {**known, "session": session})
    engine.dispose()
    assert capsys.readouterr().out == "it can't be paid, it is NEW\n"
    drain(pipeline, dsn)
    outbox.reject(conn, pipeline, "order_7", by="tom")
    exec(decided, known)
    assert re.fullmatch(r"tom was quicker: reject at 20\d\d-.*\n", capsys.readouterr().out)
