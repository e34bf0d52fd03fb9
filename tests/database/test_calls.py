"""The functions that programs in any language call: what the calls of Python do, with the rights of who calls."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from kit.roles import As
from kit.waits import trail
from outbox import Pipeline, Reject, WaitForSignal, errors, publish
from outbox.database.refusals import raised_as_ours

Conn = psycopg.Connection[Any]


@pytest.fixture
def orders(conn: Conn) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("orders", initial="NEW", final={"DONE", "GONE"}, cancelled="GONE")

    @pipeline.stage("ask", on="NEW", to="WAITING")
    def ask(run: Any) -> Any:
        if run.data.get("bad"):
            raise Reject("bad")
        return WaitForSignal("paid", to="DONE", into="payment")

    pipeline.allow("WAITING", to="DONE")
    return deployed(conn, pipeline)


def row(conn: Conn, call: str, *params: Any) -> tuple[Any, ...]:
    found = conn.execute(f"SELECT * FROM {call}".encode(), params or None).fetchall()
    assert len(found) == 1
    return found[0]


def test_submit_says_whether_it_is_new(conn: Conn, orders: Pipeline[Any]) -> None:
    id_, status, created = row(conn, "outbox.submit('orders', 'a', '{\"n\": 1}', by => 'sarah', reason => 'a gift')")
    assert (status, created) == ("NEW", True)
    assert row(conn, "outbox.submit('orders', 'a', '{\"n\": 2}', by => 'tom')") == (id_, "NEW", False)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {"n": 1}
    assert trail(conn) == [("NEW", "sarah", "a gift")]
    assert row(conn, "outbox.submit('orders', 'b')")[1:] == ("NEW", True)
    assert trail(conn, "b") == [("NEW", conn.info.user, None)]
    with pytest.raises(errors.UnknownPipeline), raised_as_ours():
        conn.execute("SELECT outbox.submit('order', 'a')")


def test_signal_says_what_it_has_done(conn: Conn, dsn: str, orders: Pipeline[Any]) -> None:
    orders.submit_many(conn, [("a", {}), ("b", {})])
    drain(orders, dsn)
    assert row(conn, "outbox.signal('orders', 'a', 'paid', '{\"sum\": 7}', id => 'p1', by => 'bank')") == (
        "DONE",
        True,
        True,
    )
    assert row(conn, "outbox.signal('orders', 'a', 'paid', id => 'p1')") == ("DONE", False, True)
    assert row(conn, "outbox.signal('orders', 'b', 'other')") == ("WAITING", True, False)
    assert value(conn, "SELECT metadata -> 'payment' FROM outbox.workflow_states WHERE entity_id = 'a'") == {"sum": 7}
    assert conn.execute("SELECT DISTINCT actor FROM outbox.state_changes WHERE to_status = 'DONE'").fetchall() == [
        ("bank",)
    ]
    with pytest.raises(errors.NoWorkflow), raised_as_ours():
        conn.execute("SELECT outbox.signal('orders', 'c', 'paid')")


def test_move_retry_and_cancel(conn: Conn, dsn: str, orders: Pipeline[Any]) -> None:
    orders.submit_many(conn, [("a", {}), ("b", {"bad": True}), ("c", {})])
    drain(orders, dsn)
    assert value(conn, "SELECT outbox.move('orders', 'a', 'DONE', by => 'sarah', reason => 'by hand')") == "DONE"
    assert value(conn, "SELECT outbox.move('orders', 'a', 'DONE')") == "DONE"
    with pytest.raises(errors.IllegalChange) as caught, raised_as_ours():
        conn.execute("SELECT outbox.move('orders', 'a', 'NEW')")
    assert (caught.value.from_status, caught.value.to_status) == ("DONE", "NEW")
    assert value(conn, "SELECT outbox.retry('orders', 'b', by => 'sarah')") is True
    assert value(conn, "SELECT outbox.retry('orders', 'b')") is False
    assert value(conn, "SELECT outbox.cancel('orders', 'c', 'sarah')") == "GONE"
    for call in ("move('orders', 'x', 'DONE')", "retry('orders', 'x')", "cancel('orders', 'x')"):
        with pytest.raises(errors.NoWorkflow) as missing, raised_as_ours():
            conn.execute(f"SELECT outbox.{call}".encode())
        assert (missing.value.pipeline, missing.value.entity_id) == ("orders", "x")


def test_each_does_what_its_caller_may_do_by_plain_sql(conn: Conn, dsn: str, orders: Pipeline[Any], as_: As) -> None:
    orders.submit_many(conn, [("a", {}), ("b", {})])
    drain(orders, dsn)
    calls = {
        "submit('orders', 'new')": {"submitter"},
        "signal('orders', 'a', 'other', id => 's')": {"submitter", "operator"},
        "move('orders', 'b', 'DONE')": {"operator", "worker"},
        "pause('orders', 'ask')": {"operator"},
        "resume('orders', 'ask')": {"operator"},
    }
    for call, groups in calls.items():
        for group in ("viewer", "relay", "consumer", "submitter", "operator", "worker"):
            login = as_(group)
            if group in groups:
                login.execute(f"SELECT outbox.{call}".encode())
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    login.execute(f"SELECT outbox.{call}".encode())
    assert value(conn, "SELECT count(*) FROM outbox.actions WHERE login = 'login_operator'") == 2
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only the engine acts as"):
        as_("submitter").execute("SELECT outbox.submit('orders', 'forged', by => 'worker-1')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="only the engine acts as"):
        as_("operator").execute("SELECT outbox.pause('orders', 'ask', by => 'outbox')")


def test_who_may_write_messages_and_not_see_them_learns_the_id(conn: Conn, as_: As) -> None:
    login = as_("submitter")
    assert publish(login, "orders.sent", {"n": 1}) == value(conn, "SELECT message_id FROM outbox.messages")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        publish(as_("viewer"), "orders.sent", {})


def test_an_error_leaves_the_name_as_it_was(conn: Conn, orders: Pipeline[Any]) -> None:
    orders.submit(conn, "a", {})
    with conn.transaction():
        conn.execute("SET LOCAL outbox.actor = 'tom'")
        with pytest.raises(psycopg.Error), conn.transaction():
            conn.execute("SELECT outbox.move('orders', 'a', 'DONE', by => 'sarah')")
        conn.execute("SELECT outbox.submit('orders', 'b', by => 'sarah')")
        assert value(conn, "SELECT outbox.actor()") == "tom"
    assert trail(conn, "b") == [("NEW", "sarah", None)]


def test_data_of_other_languages_has_the_version_that_the_pipeline_says(conn: Conn, dsn: str, as_: As) -> None:
    pipeline = Pipeline("p", data=Post, initial="NEW", final={"DONE"}, version=2, plain=2)
    pipeline.migrate_data(1, lambda old: {"content": "of version 1"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, pipeline)
    asked = "SELECT json_schema -> 'required', data_version FROM outbox.pipelines"
    assert as_("submitter").execute(asked).fetchall() == conn.execute(asked).fetchall()
    for entity, data in (("plain", {"content": "x"}), ("stated", {"$version": 1, "body": "x"})):
        conn.execute("SELECT outbox.submit('p', %s, %s)", [entity, json.dumps(data)])
    drain(pipeline, dsn)
    assert [pipeline.get(conn, name).data.content for name in ("plain", "stated")] == ["x", "of version 1"]


def test_who_sees_no_index_of_odd_operators_calls_them_safely(conn: Conn, orders: Pipeline[Any]) -> None:
    """What is in front of pg_catalog in the caller's search_path decides nothing."""
    conn.execute("CREATE FUNCTION outbox.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false'")
    conn.execute("CREATE OPERATOR outbox.= (LEFTARG = text, RIGHTARG = text, FUNCTION = outbox.never)")
    conn.execute("SET search_path = outbox, pg_catalog")
    assert row(conn, "outbox.submit('orders', 'a')")[2] is True
    assert row(conn, "outbox.submit('orders', 'a')")[2] is False
    conn.execute("RESET search_path")
    assert status_of(conn, "a") == "NEW"


def test_many_start_at_once_and_one_is_new(conn: Conn, dsn: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    deployed(conn, one_stage(lambda run: None))

    def start(_: int) -> bool:
        with psycopg.connect(dsn) as mine:
            return bool(row(mine, "outbox.submit('p', 'a')")[2])

    with ThreadPoolExecutor() as pool:
        assert sorted(pool.map(start, range(4))) == [False, False, False, True]
