"""Each call works on each kind of connection that an application holds, in the application's own transaction."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy
from django.db import connections
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from kit.drivers import KINDS, Held, held, url
from kit.letters import uuid7
from kit.pipelines import drain, value
from outbox import (
    IllegalChange,
    Inbox,
    InvalidInput,
    NotFound,
    NoWorkflow,
    Pipeline,
    Reject,
    SchemaError,
    WaitForApproval,
    approvals,
    approve,
    client,
    dead,
    decide,
    delegate,
    end_delegation,
    pause,
    publish,
    resume,
    retry,
    retry_all,
    signal,
    status,
    why,
)
from outbox.client import submit
from outbox.database import statements
from outbox.database.drivers import spelling
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
ODD = ['50 % "of" it', "back\\slash 'quoted'", "snow ☃ :x $1 %s %(y)s {a}", " "]
QUERIES = Path(client.__file__).parents[2] / "sql" / "queries"
kinds = pytest.mark.parametrize("kind", KINDS)


class Ours(Exception):
    """Rolls back what a test has begun."""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_orders"
    __table_args__ = ({"schema": "outbox"},)
    id: Mapped[int] = mapped_column(primary_key=True)


def orders() -> Pipeline[dict[str, Any]]:
    pipeline = Pipeline("orders", initial="NEW", final={"DONE", "GONE"}, cancelled="GONE")

    @pipeline.stage("ask", on="NEW", to="ASKED")
    def ask(run: Any) -> Any:
        if run.data.get("fails"):
            raise Reject("ValueError: no 7")
        return WaitForApproval("Ship it?", status="ASKED", options={"approve": "DONE", "reject": "GONE"})

    pipeline.allow("ASKED", to={"DONE", "GONE"})
    return pipeline


@pytest.fixture
def shop(conn: Conn) -> Pipeline[dict[str, Any]]:
    pipeline = orders()
    deploy.deploy(conn, pipeline)
    return pipeline


@kinds
def test_a_workflow_is_submitted_in_the_applications_transaction(
    kind: str, shop: Pipeline[Any], conn: Conn, dsn: str
) -> None:
    with held(kind, dsn) as app:
        new = app.call(shop.submit, app.conn, "a", {"n": 1})
        again = app.call(shop.submit, app.conn, "a", {"n": 2})
        assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0, "others see it with the commit"
    assert (new.created, again.created, again.status, new.id == again.id) == (True, False, "NEW", True)
    assert isinstance(new.id, uuid.UUID)
    assert conn.execute("SELECT entity_id, metadata FROM outbox.workflow_states").fetchall() == [("a", {"n": 1})]


@kinds
def test_what_is_rolled_back_was_not_there(kind: str, shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    with suppress(Ours), held(kind, dsn) as app:
        app.call(shop.submit, app.conn, "a", {})
        raise Ours
    with held(kind, dsn) as app:
        with suppress(Ours), app.savepoint():
            app.call(shop.submit, app.conn, "b", {})
            raise Ours
        app.call(shop.submit, app.conn, "c", {})
    assert conn.execute("SELECT entity_id FROM outbox.workflow_states").fetchall() == [("c",)]


@kinds
def test_a_refusal_is_our_error_and_costs_a_savepoint(kind: str, shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    with held(kind, dsn) as app:
        with pytest.raises(NoWorkflow) as caught, app.savepoint():
            app.call(decide, app.conn, shop, "nothing", "approve")
        assert caught.value.__cause__ is not None, "the driver's error is behind it"
        with pytest.raises(InvalidInput):
            app.call(shop.submit, app.conn, "", {})
        app.call(shop.submit, app.conn, "a", {})
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1


@kinds
def test_any_text_arrives_as_it_is(kind: str, shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    with held(kind, dsn) as app:
        for text in ODD:
            app.call(shop.submit, app.conn, text, {"text": text})
        assert app.call(shop.submit_many, app.conn, [(f"{text} many", {"text": text}) for text in ODD]) == len(ODD)
        found = [app.call(shop.get, app.conn, text) for text in ODD]
    assert [each.data for each in found] == [{"text": text} for text in ODD]
    stored = conn.execute("SELECT entity_id, metadata->>'text' FROM outbox.workflow_states").fetchall()
    assert set(stored) == {(name, text) for text in ODD for name in (text, f"{text} many")}


@kinds
def test_every_call_works(kind: str, shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    shop.submit_many(conn, ((name, {"n": 0.5}) for name in "abcdef"))
    drain(shop, dsn)
    inbox, message, soon = Inbox("mail"), uuid7(), datetime.now(UTC) + timedelta(days=1)
    with held(kind, dsn) as app:
        assert app.call(approve, app.conn, shop, "a", by="sarah", reason="fine", edit={"n": 7}) == "DONE"
        assert app.call(decide, app.conn, "orders", "b", "reject") == "GONE"
        assert app.call(shop.cancel, app.conn, "c", reason="by mistake") == "GONE"
        sent = [app.call(signal, app.conn, shop, "d", "paid", {"sum": "1"}, id="p1").created for _ in range(2)]
        assert sent == [True, False]
        assert app.call(shop.submit, app.conn, "g", {}, by="tom", reason="a copy").created
        assert [app.call(inbox.accept, app.conn, message) for _ in range(2)] == [True, False]
        assert type(app.call(publish, app.conn, 'odd % "☃"', {"text": ODD}, key="a")) is uuid.UUID
        assert app.call(delegate, app.conn, "tom", until=soon) is None
        assert app.call(end_delegation, app.conn, "tom") is True
        because = app.call(why, app.conn, shop, "e")
        assert (because.cause, isinstance(because.details, dict)) == ("person", True)
        page = app.call(shop.find, app.conn, status="ASKED", limit=2)
        rest = app.call(shop.find, app.conn, status="ASKED", limit=5, after=page.after)
        assert sorted(each.entity_id for each in (*page, *rest)) == ["d", "e", "f"]
        one = app.call(shop.get, app.conn, "a")
        assert app.call(shop.get, app.conn, "nothing") is None
        changes = app.call(shop.history, app.conn, "a")
    assert (one.data, one.status, type(one.id), one.created_at.utcoffset() is not None) == (
        {"n": 7},
        "DONE",
        uuid.UUID,
        True,
    )
    assert [each.to_status for each in changes] == ["NEW", "ASKED", "DONE"]
    assert changes[0].at <= changes[-1].at <= datetime.now(UTC)
    assert one == shop.get(conn, "a"), "the same by any driver"
    assert conn.execute("SELECT topic, key, payload FROM outbox.messages").fetchall() == [
        ('odd % "☃"', "a", {"text": ODD})
    ]


@kinds
def test_what_a_person_operates_by_is_a_call_too(kind: str, shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    shop.submit_many(conn, ((name, {"fails": name in "bcd"}) for name in "abcd"))
    drain(shop, dsn)
    with held(kind, dsn) as app:
        assert app.call(shop.move, app.conn, "a", "DONE", by="sarah", reason='50 % of "it" ☃') == "DONE"
        assert app.call(shop.move, app.conn, "a", "DONE") == "DONE"
        with pytest.raises(IllegalChange) as caught, app.savepoint():
            app.call(shop.move, app.conn, "a", "NEW")
        assert (caught.value.from_status, caught.value.to_status) == ("DONE", "NEW")
        with pytest.raises(NoWorkflow), app.savepoint():
            app.call(shop.move, app.conn, "nothing", "DONE")
        assert app.call(approvals, app.conn, pipeline=shop) == []
        found = app.call(dead, app.conn, pipeline="orders", error="ValueError: no 7")
        assert sorted((each.entity_id, each.stage, each.attempts) for each in found) == [(x, "ask", 1) for x in "bcd"]
        assert app.call(retry, app.conn, shop, "b", by="tom", reason="mended") is True
        assert app.call(retry, app.conn, shop, "b") is False, "it has a job by now"
        assert app.call(retry_all, app.conn, error="TypeError: no") == 0
        assert app.call(retry_all, app.conn, pipeline=shop, by="tim") == 2
        assert app.call(dead, app.conn) == []
        assert [app.call(pause, app.conn, "orders.ask", by="tom") for _ in range(2)] == [True, False]
        counted = {each.status: each for each in app.call(status, app.conn, pipeline=shop)}
        assert list(counted) == ["NEW", "ASKED", "DONE", "GONE"], "in the order of the flow"
        assert (counted["NEW"].workflows, counted["NEW"].ready, counted["NEW"].paused) == (3, 3, True)
        assert [app.call(resume, app.conn, "ask", pipeline=shop, reason="go") for _ in range(2)] == [True, False]
        with pytest.raises(NotFound, match='has a stage "asc"'):
            app.call(pause, app.conn, "asc")
    assert conn.execute("SELECT actor, reason FROM outbox.state_changes WHERE to_status = 'DONE'").fetchall() == [
        ("sarah", '50 % of "it" ☃')
    ]
    told = conn.execute("SELECT action, stage, actor, reason FROM outbox.actions ORDER BY id").fetchall()
    me = conn.info.user
    assert sorted(told, key=str) == sorted([
        ("retry", "ask", "tom", "mended"), ("retry", "ask", "tim", None), ("retry", "ask", "tim", None),
        ("pause", "ask", "tom", None), ("resume", "ask", me, "go"),
    ], key=str)  # fmt: skip


@kinds
def test_open_questions_are_listed_with_what_they_are_about(
    kind: str, shop: Pipeline[Any], conn: Conn, dsn: str
) -> None:
    shop.submit_many(conn, ((name, {"n": name}) for name in "abc"))
    drain(shop, dsn)
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"n\": 7}' WHERE entity_id = 'b'")
    with held(kind, dsn) as app:
        first, *_ = app.call(approvals, app.conn, pipeline=shop, limit=1)
        rest = app.call(approvals, app.conn, after=first.id)
        assert app.call(approvals, app.conn, assignee="sarah") == []
        assert (first.options, first.data, first.changed) == ({"approve": "DONE", "reject": "GONE"}, {"n": "a"}, False)
        assert [(each.entity_id, each.data, each.changed) for each in rest] == [
            ("b", {"n": 7}, True), ("c", {"n": "c"}, False),
        ]  # fmt: skip
        b = rest[0]
        assert (type(b.id), b.deadline, b.asked_at.utcoffset() is not None) == (uuid.UUID, None, True)
        assert app.call(decide, app.conn, shop, "b", "approve", question=b.id, shown=b.shown) == "DONE"


def test_what_an_application_has_registered_for_types_is_of_no_importance(
    shop: Pipeline[Any], conn: Conn, dsn: str
) -> None:
    conn.execute("SET TIME ZONE 'Asia/Kolkata'")
    conn.execute("SET DateStyle = 'SQL, DMY'")
    conn.adapters.register_loader("uuid", psycopg.types.string.TextLoader)
    conn.adapters.register_loader("jsonb", psycopg.types.string.TextLoader)
    conn.adapters.register_loader("timestamptz", psycopg.types.string.TextLoader)
    assert isinstance(shop.submit(conn, "a", {}).id, uuid.UUID)
    assert shop.get(conn, "a").created_at <= datetime.now(UTC)
    with held("asyncpg", dsn) as app:
        for name in ("json", "jsonb", "uuid", "timestamptz"):
            app.call(
                app.conn.set_type_codec, name, schema="pg_catalog",
                encoder=lambda value: f"no {value}", decoder=lambda text: f"no {text}",
            )  # fmt: skip
        assert isinstance(app.call(shop.submit, app.conn, "b", {"n": 1}).id, uuid.UUID)
        assert app.call(shop.get, app.conn, "b").data == {"n": 1}
        assert app.call(why, app.conn, shop, "b").cause


def test_a_session_is_flushed_before(shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    conn.execute("CREATE TABLE outbox.shop_orders (id serial PRIMARY KEY)")
    for kind in ("sqlalchemy session psycopg", "sqlalchemy scoped psycopg", "sqlalchemy async session asyncpg"):
        with held(kind, dsn) as app:
            app.conn.add(order := Order())
            app.call(shop.submit, app.conn, kind, {})
            assert order in app.conn and order.id > 0  # noqa: PT018
    assert value(conn, "SELECT count(*) FROM outbox.shop_orders") == 3


@pytest.mark.parametrize(
    ("module", "make", "told"),
    [
        ("psycopg2.extensions", "psycopg2.connect({dsn!r}).cursor()", "is a cursor: pass its connection"),
        (
            "sqlalchemy",
            "sqlalchemy.create_engine({url!r})",
            "is an engine: pass a connection of it, as in `with engine.begin()",
        ),
        (
            "sqlalchemy.ext.asyncio",
            "sqlalchemy.ext.asyncio.create_async_engine({async_url!r})",
            "is an engine: pass a connection of it, as in `async with engine.begin()",
        ),
        ("sqlalchemy.orm", "sqlalchemy.orm.sessionmaker()", "is a maker of sessions: pass a session"),
        (
            "sqlalchemy",
            "sqlalchemy.create_engine({url!r}).raw_connection()",
            "is a connection of SQLAlchemy's pool: pass the",
        ),
        ("asyncpg", "asyncpg.pool.Pool.__new__(asyncpg.pool.Pool)", "is a pool: pass a connection of it"),
        ("psycopg2.pool", "psycopg2.pool.SimpleConnectionPool(0, 1, {dsn!r})", "is a pool: pass a connection of it"),
        ("psycopg2", "psycopg2.connect({dsn!r}, async_=True)", "is an asynchronous connection of psycopg2: pass one"),
        ("django.db", "django.db.connections", "is a set of connections: pass one"),
        ("json", "{dsn!r}", "is a DSN: pass a connection"),
        (
            "json",
            "None",
            "must be a connection or session of psycopg, psycopg2, asyncpg, SQLAlchemy or Django, not NoneType",
        ),
        (
            "sqlalchemy",
            "sqlalchemy.create_engine('sqlite://').connect()",
            "leads to sqlite: Outbox's tables are in a Postgres",
        ),
    ],
)
def test_what_is_no_connection_is_refused_with_what_to_pass(
    shop: Pipeline[Any], dsn: str, module: str, make: str, told: str
) -> None:
    import_module(module)
    spelled = make.format(dsn=dsn, url=url(dsn, "psycopg2"), async_url=url(dsn, "asyncpg"))
    wrong = eval(spelled, {module.partition(".")[0]: import_module(module.partition(".")[0])})
    with pytest.raises(InvalidInput) as caught:
        shop.submit(wrong, "a", {})
    assert str(caught.value).startswith(f"conn: {told}")


@kinds
def test_without_the_schema_the_error_says_what_to_run(kind: str, empty_dsn: str) -> None:
    with pytest.raises(SchemaError, match="Run: outbox migrate"), held(kind, empty_dsn) as app:
        app.call(orders().submit, app.conn, "a", {})
    with pytest.raises(SchemaError, match="Run: outbox migrate"), held(kind, empty_dsn) as app:
        app.call(decide, app.conn, "orders", "a", "approve")


def test_each_statement_reads_texts_and_returns_what_all_drivers_agree_on(conn: Conn) -> None:
    """Whatever is sent is cast, and no id, time or JSON comes back that a driver or an application reads its own way."""
    agreed = {"text", "varchar", "bool", "int4", "int8", "float8", "void"}
    for step in (
        file.stem for file in Path(client.__file__).parent.glob("*.py") if (QUERIES / f"{file.stem}.sql").is_file()
    ):
        for name, statement in statements.load(step).items():
            text = spelling.numbered((statement, defaultdict(str)))[0]
            assert conn.pgconn.prepare(b"", text.encode()).status == pq.ExecStatus.COMMAND_OK, f"{step}: {name}"
            described = conn.pgconn.describe_prepared(b"")
            kinds = [described.ftype(n) for n in range(described.nfields)]
            names = "SELECT array_agg(typname::text) FROM pg_type WHERE oid = ANY (%s)"
            assert set(conn.execute(names, [kinds]).fetchone()[0] or ()) <= agreed, f"{step}: {name}"


def autocommitting(kind: str, dsn: str, stack: ExitStack) -> Held:
    """Opens a connection that commits each statement by itself."""
    if kind == "psycopg":
        return Held((stack.enter_context(psycopg.connect(dsn, autocommit=True)), None), None)
    if kind == "psycopg2":
        conn = psycopg2.connect(dsn)
        conn.autocommit = True
        stack.callback(conn.close)
        return Held((conn, None), None)
    if kind == "django":
        at = conninfo_to_dict(dsn)
        conn = connections["default"]
        conn.settings_dict.update(NAME=at["dbname"], USER=at["user"], HOST=at["host"], PORT=at["port"])
        stack.callback(conn.close)
        return Held((conn, None), None)
    runner = stack.enter_context(asyncio.Runner())
    if kind == "psycopg async":
        conn = runner.run(psycopg.AsyncConnection.connect(dsn, autocommit=True))
    else:
        conn = runner.run(asyncpg.connect(dsn))
    stack.callback(lambda: runner.run(conn.close()))
    return Held((conn, None), runner)


def test_a_session_whose_texts_are_bytes_is_refused_before_any_sql(shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    with (
        psycopg.connect(dsn, client_encoding="SQL_ASCII", autocommit=True) as app,
        pytest.raises(InvalidInput, match="client_encoding SQL_ASCII, in which psycopg reads texts as bytes"),
    ):
        shop.submit(app, "a", {})
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0


def test_a_paramstyle_that_is_not_the_drivers_is_named(shop: Pipeline[Any], dsn: str) -> None:
    with (
        sqlalchemy.create_engine(url(dsn, "psycopg"), paramstyle="named", poolclass=NullPool).connect() as app,
        pytest.raises(InvalidInput, match="uses psycopg with paramstyle 'named'"),
    ):
        shop.submit(app, "a", {})


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async", "psycopg2", "asyncpg", "django"])
def test_several_statements_are_one_transaction_where_each_would_be_committed(
    kind: str, shop: Pipeline[Any], conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "BATCH", 2)

    def items(last: Any) -> Iterator[tuple[str, Any]]:
        yield from ((f"e{n}", {}) for n in range(5))
        yield last

    with ExitStack() as stack:
        app = autocommitting(kind, dsn, stack)
        with pytest.raises(InvalidInput):
            app.call(shop.submit_many, app.conn, items(("", {})))
        assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 0, "batches before the error, too"
        assert app.call(shop.submit_many, app.conn, items(("e5", {}))) == 6
        assert app.call(shop.submit, app.conn, "e6", {}).created
        assert app.call(signal, app.conn, shop, "e6", "paid").created
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 7


def test_sqlalchemy_in_autocommit_is_refused_where_it_would_be_half_done(
    shop: Pipeline[Any], conn: Conn, dsn: str
) -> None:
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as app:
        assert shop.submit(app, "a", {}).created
        with pytest.raises(InvalidInput, match="is in autocommit"):
            shop.submit_many(app, [("b", {})])
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1


def test_what_was_handled_before_is_no_refusal_of_this_statement(shop: Pipeline[Any], conn: Conn, dsn: str) -> None:
    with held("sqlalchemy connection psycopg", dsn) as app:
        try:
            app.call(decide, app.conn, shop, "nothing", "approve")
        except NoWorkflow:
            with pytest.raises(sqlalchemy.exc.DBAPIError, match="aborted"):
                app.call(shop.submit, app.conn, "a", {})
        app.conn.rollback()
