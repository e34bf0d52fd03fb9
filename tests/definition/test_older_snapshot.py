"""A transaction at a higher isolation level may see the definition of before a deploy: then it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import Order, Task, families, orders, waiting
from outbox import Pipeline, WaitForApproval, WaitForChildren, WaitForSignal
from outbox.definition import deploy
from outbox.operations.drop import drop

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
UNKNOWN = """
    SELECT count(*) FROM outbox.workflow_states AS w WHERE NOT EXISTS (
        SELECT FROM outbox.routes AS r WHERE r.pipeline = w.pipeline AND r.status = w.current_status)
"""


def first(outcome: Any = None) -> Pipeline[Order]:
    pipeline = orders(outcome)
    pipeline.cancelled = "CANCELLED"
    return pipeline


def renamed() -> Pipeline[Order]:
    """`orders` with other names for all statuses to which a workflow in NEW or WAITING goes, and for the first."""
    newer: Pipeline[Order] = Pipeline(
        "orders", data=Order, initial="ASKED", final={"SENT", "DECLINED", "EXPIRED"}, cancelled="STOPPED"
    )
    newer.stage("ask", on="ASKED", to="WAITING")(lambda run: None)
    newer.stage("send", on="BOUGHT", to="SENT")(lambda run: None)
    newer.allow("WAITING", to={"BOUGHT", "DECLINED", "EXPIRED"})
    for old, new in {
        "NEW": "ASKED",
        "PAID": "BOUGHT",
        "REFUSED": "DECLINED",
        "LATE": "EXPIRED",
        "CANCELLED": "STOPPED",
    }.items():
        newer.rename(old, new)
    return newer


def by_sql(statement: str) -> Callable[[Conn], Any]:
    return lambda conn: conn.execute(statement)


ACTS: dict[str, tuple[Any, Callable[[Conn], Any]]] = {
    "a submit": (None, by_sql("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('orders', 'b')")),
    "a change": (None, by_sql("UPDATE outbox.workflow_states SET current_status = 'PAID' WHERE entity_id = 'a'")),
    "a cancellation": (None, lambda conn: outbox.Pipeline.cancel(first(), conn, "a")),
    "a decision": (
        WaitForApproval("?", options={"approve": "PAID"}, status="WAITING"),
        lambda conn: outbox.approve(conn, "orders", "a", by="sarah"),
    ),
    "a signal": (
        WaitForSignal("payment", to="PAID", status="WAITING"), lambda conn: outbox.signal(conn, "orders", "a", "payment"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("what", list(ACTS))
def test_it_does_not_go_by_the_names_of_before_a_rename(
    conn: Conn, dsn: str, connect: Connect, what: str, level: Any
) -> None:
    wait, act = ACTS[what]
    waiting(conn, dsn, wait or WaitForSignal("never", to="PAID", status="WAITING"))
    deploy.deploy(conn, first(wait))
    older = connect(autocommit=False)
    older.isolation_level = level
    older.execute("SELECT FROM outbox.routes")
    deploy.deploy(conn, renamed())
    with pytest.raises(psycopg.errors.SerializationFailure):
        act(older)
    older.rollback()
    assert value(conn, UNKNOWN) == 0


def test_nothing_starts_in_a_pipeline_that_was_dropped(conn: Conn, connect: Connect) -> None:
    deployed(conn, first())
    older = connect(autocommit=False)
    older.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    older.execute("SELECT FROM outbox.routes")
    drop(conn, "orders")
    with pytest.raises(psycopg.errors.SerializationFailure):
        first().submit(older, "a", Order())
    older.rollback()
    assert value(conn, UNKNOWN) == 0


BEGINS = """
    SELECT outbox.joins_require_known(
        jsonb_build_array(jsonb_build_object('id', w.id, 'join', true, 'failed', ARRAY['BAD'])), ARRAY[w.id])
    FROM outbox.workflow_states AS w WHERE w.entity_id = 'p'
"""


@pytest.mark.parametrize("what", ["its wait for them begins", "it is cancelled"])
def test_names_of_its_childrens_statuses_are_not_of_before_a_rename(
    conn: Conn, dsn: str, connect: Connect, what: str
) -> None:
    wait: WaitForChildren[Any] = WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD"})
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task()), wait)
    parents.cancelled = tasks.cancelled = "CANCELLED"
    deployed(conn, tasks)
    deployed(conn, parents)
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    older = connect(autocommit=False)
    older.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    older.execute("SELECT FROM outbox.routes")
    newer: Pipeline[Task] = Pipeline("tasks", data=Task, initial="NEW", final={"DONE", "WORSE"}, cancelled="STOPPED")
    newer.stage("work", on="NEW", to={"DONE", "WORSE"})(lambda run: None)
    newer.rename("BAD", "WORSE")
    newer.rename("CANCELLED", "STOPPED")
    deploy.deploy(conn, newer)
    act = (lambda: parents.cancel(older, "p")) if what == "it is cancelled" else (lambda: older.execute(BEGINS))
    with pytest.raises(psycopg.errors.SerializationFailure):
        act()
    older.rollback()
    assert status_of(conn, "p") == "WAITING"
