"""Every time is that of the change and not that of the start of its transaction, which may be long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, value
from kit.waits import HOUR, PAYMENT, TIMED, Order, Task, families, orders
from outbox import Go, Pipeline, Run, WaitForChildren, decide, signal
from outbox.definition.deploy import deploy

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]


def clock(conn: Conn) -> datetime:
    """Return a moment that is later than the start of the transaction."""
    conn.execute("SELECT pg_sleep(0.002)")
    return conn.execute("SELECT clock_timestamp()").fetchall()[0][0]


def earliest(conn: Conn, *of: str) -> datetime:
    """Return the earliest of these times."""
    return min(conn.execute(statement.encode()).fetchall()[0][0] for statement in of)


CHANGED = (
    "SELECT max(at) FROM outbox.state_changes",
    "SELECT max(updated_at) FROM outbox.workflow_states",
)


@pytest.mark.parametrize(
    ("outcome", "times"),
    [
        (Go("PAID", after=HOUR), ["SELECT run_at - interval '1 hour' FROM outbox.jobs"]),
        (Go("PAID"), ["SELECT run_at FROM outbox.jobs"]),
        (Go("WAITING"), ["SELECT deadline - interval '2 hours' FROM outbox.jobs"]),
        (
            TIMED,
            [
                "SELECT deadline - interval '1 hour' FROM outbox.jobs",
                "SELECT asked_at FROM outbox.approvals",
                "SELECT deadline - interval '1 hour' FROM outbox.approvals",
            ],
        ),
        (PAYMENT, ["SELECT deadline - interval '1 hour' FROM outbox.jobs", "SELECT since FROM outbox.waits"]),
    ],
)
def test_what_a_handlers_transaction_ends_in_counts_from_its_end(
    conn: Conn, dsn: str, outcome: Any, times: list[str]
) -> None:
    ends: list[datetime] = []
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED", "LATE"})

    @pipeline.stage("ask", on="NEW", to={"WAITING", "PAID"}, transaction=True)
    def ask(run: Run[Order]) -> Any:
        run.publish("asked", {})
        ends.append(clock(run.connection))
        return outcome if isinstance(outcome, Go) else replace(outcome, status="WAITING")

    pipeline.stage("send", on="PAID", to="SENT")(lambda run: None)
    pipeline.allow("WAITING", to={"PAID", "REFUSED", "LATE"})
    pipeline.deadline("WAITING", hours=2, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn, stages=["ask"])
    assert len(ends) == 1
    assert earliest(conn, *CHANGED, "SELECT created_at FROM outbox.messages", *times) >= ends[0]
    asked = value(conn, "SELECT deadline FROM outbox.approvals")
    assert asked == (value(conn, "SELECT deadline FROM outbox.jobs") if outcome is TIMED else None)


def test_children_start_at_the_end_of_the_transaction_that_spawned_them(conn: Conn, dsn: str) -> None:
    ends: list[datetime] = []

    def spawn(run: Run[Task]) -> None:
        run.spawn(tasks, "t", Task())
        ends.append(clock(conn))

    parents, tasks = families(spawn, WaitForChildren(to="MERGED"), transaction=True)
    tasks.deadline("NEW", hours=1, to="CANCELLED")
    deployed(conn, tasks)
    deployed(conn, parents).submit(conn, "p", Task())
    drain(parents, dsn)
    child = "FROM outbox.workflow_states AS w JOIN outbox.jobs AS j ON j.workflow_id = w.id WHERE w.entity_id = 't'"
    times = [f"SELECT {of} {child}" for of in ("created_at", "run_at", "deadline - interval '1 hour'")]
    assert earliest(conn, *CHANGED, *times) >= ends[0]


def test_what_a_person_does_in_a_long_transaction_has_its_own_time(conn: Conn, dsn: str) -> None:
    pipeline = orders(TIMED)
    pipeline.deadline("NEW", hours=1, to="LATE")
    deployed(conn, pipeline)
    with conn.transaction():
        begun = clock(conn)
        pipeline.submit(conn, "a", Order())
        assert earliest(conn, *CHANGED, "SELECT deadline - interval '1 hour' FROM outbox.jobs") >= begun
        assert value(conn, "SELECT created_at = updated_at FROM outbox.workflow_states")
    drain(pipeline, dsn)
    with conn.transaction():
        begun = clock(conn)
        decide(conn, pipeline, "a", "approve", by="sarah")
        assert earliest(conn, *CHANGED, "SELECT ended_at FROM outbox.approvals") >= begun
        begun = clock(conn)
        signal(conn, pipeline, "a", "payment", {})
        assert earliest(conn, "SELECT sent_at FROM outbox.signals") >= begun
        begun = clock(conn)
        conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"total\": 9}'")
        assert earliest(conn, CHANGED[1]) >= begun
        begun = clock(conn)
        conn.execute("INSERT INTO outbox.pauses (pipeline, stage) VALUES ('orders', 'send')")
        conn.execute("INSERT INTO outbox.messages (topic) VALUES ('t')")
        assert (
            earliest(conn, "SELECT paused_at FROM outbox.pauses", "SELECT max(created_at) FROM outbox.messages")
            >= begun
        )


def test_a_taken_signal_has_the_time_at_which_it_was_taken(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(PAYMENT))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    with conn.transaction():
        begun = clock(conn)
        signal(conn, pipeline, "a", "payment", {"total": 1})
    assert earliest(conn, *CHANGED, "SELECT taken_at FROM outbox.signals") >= begun


def test_history_is_in_the_order_of_its_versions_whichever_transaction_began_first(
    conn: Conn, connect: Connect
) -> None:
    pipeline = deployed(conn, orders(None))
    pipeline.submit(conn, "a", Order())
    early, late = connect(autocommit=False), connect(autocommit=False)
    early.execute("SELECT 1")
    late.execute("UPDATE outbox.workflow_states SET current_status = 'WAITING'")
    late.commit()
    early.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    early.execute("UPDATE outbox.workflow_states SET current_status = 'SENT'")
    early.commit()
    assert conn.execute("SELECT to_status FROM outbox.state_changes ORDER BY at").fetchall() == [
        ("NEW",), ("WAITING",), ("PAID",), ("SENT",)
    ]  # fmt: skip


def test_a_deploy_in_a_long_transaction_gives_jobs_and_deadlines_the_time_of_their_own(conn: Conn) -> None:
    plain = orders(None)
    deployed(conn, plain).submit(conn, "a", Order())
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'WAITING'")
    served = orders(None)
    served.stage("look", on="WAITING", to="PAID")(lambda run: None)
    served.deadline("WAITING", hours=1, to="LATE")
    with conn.transaction():
        begun = clock(conn)
        deploy(conn, served)
        assert (
            earliest(
                conn,
                "SELECT deadline - interval '1 hour' FROM outbox.jobs",
                "SELECT run_at FROM outbox.jobs",
                "SELECT deployed_at FROM outbox.pipelines",
            )
            >= begun
        )
