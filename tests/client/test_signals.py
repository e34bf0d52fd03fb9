"""Signals: one moves the workflow that waits for it, before or after the wait begins; each is taken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value
from kit.waits import PAYMENT, Order, orders, put_off, trail, waiting
from outbox import NoWorkflow, Pipeline, Run, WaitForSignal, signal

Conn = psycopg.Connection[Any]


def test_a_signal_moves_the_workflow_that_waits_for_it(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    sent = signal(conn, pipeline, "a", "payment", {"sum": 5}, id="p1")
    assert (sent.status, sent.created, sent.taken) == ("PAID", True, True)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {"total": 5, "payment": {"sum": 5}}
    assert trail(conn)[-1][2] == "signal payment"
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_a_signal_before_the_wait_is_kept_and_taken(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(PAYMENT))
    pipeline.submit(conn, "a", Order())
    assert signal(conn, pipeline, "a", "payment", {"sum": 5}).taken is False
    assert signal(conn, pipeline, "a", "other").taken is False
    drain(pipeline, dsn)
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING", "PAID", "SENT"]
    assert conn.execute("SELECT name, taken_at IS NOT NULL FROM outbox.signals ORDER BY id").fetchall() == [
        ("payment", True),
        ("other", False),
    ]
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_the_same_id_twice_is_one_signal_and_none_is_taken_twice(conn: Conn, dsn: str) -> None:
    def again(run: Run[Order]) -> WaitForSignal[Order]:
        return WaitForSignal("payment", to="NEW")

    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW")
    pipeline.stage("ask", on="NEW", to="WAITING")(again)
    pipeline.allow("WAITING", to="NEW")
    deployed(conn, pipeline).submit(conn, "a", Order())
    assert [signal(conn, "orders", "a", "payment", id=id).created for id in ("p1", "p1", "p2", None)] == [
        True,
        False,
        True,
        True,
    ]
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.signals WHERE taken_at IS NOT NULL") == 3
    assert [status for status, *_ in trail(conn)] == ["NEW"] + ["WAITING", "NEW"] * 3 + ["WAITING"]


def test_a_plain_insert_is_a_signal(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, PAYMENT)
    insert = "INSERT INTO outbox.signals (pipeline, entity_id, name, payload) VALUES ('orders', %s, 'payment', '1')"
    conn.execute(insert, ("a",))
    assert status_of(conn, "a") == "PAID"
    with pytest.raises(psycopg.Error, match='no workflow of entity "b"') as refused:
        conn.execute(insert, ("b",))
    assert refused.value.sqlstate == "OB011"


def test_a_signal_for_a_workflow_that_does_not_exist_is_refused(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    with pytest.raises(NoWorkflow, match='signal "payment": there is no workflow of entity "b"') as refused:
        signal(conn, pipeline, "b", "payment")
    assert refused.value.sqlstate == "OB011"


def test_a_signal_that_never_comes_times_out(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "LATE"
    late = signal(conn, pipeline, "a", "payment")
    assert (late.status, late.taken) == ("LATE", False)
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 0


def test_a_signal_rolled_back_never_was(conn: Conn, connect: Callable[..., Conn], dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    other = connect(autocommit=False)
    signal(other, pipeline, "a", "payment")
    other.rollback()
    assert status_of(conn, "a") == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.signals") == 0
