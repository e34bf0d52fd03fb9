"""A workflow that is not to go on is cancelled: its job, questions, waits and children end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, drain, drain_all, status_of, value
from kit.waits import PAYMENT, TIMED, Order, Task, trail
from outbox import (
    DefinitionError,
    IllegalChange,
    InvalidInput,
    NotCancellable,
    NoWorkflow,
    Pipeline,
    Run,
    TooLate,
    WaitForChildren,
)

Conn = psycopg.Connection[Any]


def orders(outcome: Any = None, handler: Callable[..., Any] | None = None, **options: Any) -> Pipeline[Order]:
    """NEW -> WAITING -> SENT or LATE, or CANCELLED from anywhere."""
    pipeline: Pipeline[Order] = Pipeline(
        "orders", data=Order, initial="NEW", final={"SENT", "LATE", "REFUSED"}, cancelled="CANCELLED"
    )
    pipeline.stage("ask", on="NEW", to="WAITING", running="ASKING", **options)(handler or (lambda run: outcome))
    pipeline.stage("send", on="PAID", to="SENT")(lambda run: None)
    pipeline.allow("WAITING", to={"PAID", "LATE", "REFUSED"})
    return pipeline


def submitted(conn: Conn, dsn: str, outcome: Any) -> Pipeline[Order]:
    pipeline = deployed(conn, orders(outcome))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    return pipeline


def test_a_cancelled_status_is_final_and_legal_from_everywhere_else() -> None:
    pipeline = orders()
    assert pipeline.routes()["CANCELLED"].final
    cancelling = {source for source, target in pipeline.legal_changes() if target == "CANCELLED"}
    assert cancelling == {"NEW", "ASKING", "WAITING", "PAID"}
    with pytest.raises(DefinitionError, match="which is final"):
        pipeline.stage("more", on="CANCELLED", to="NEW")(lambda run: None)


@pytest.mark.parametrize("wait", [TIMED, PAYMENT], ids=["question", "signal"])
def test_a_workflow_that_waits_is_cancelled_and_nothing_of_its_wait_is_left(conn: Conn, dsn: str, wait: Any) -> None:
    pipeline = submitted(conn, dsn, wait)
    assert pipeline.cancel(conn, "a", by="sarah", reason="a duplicate") == "CANCELLED"
    assert trail(conn)[-1] == ("CANCELLED", "sarah", "a duplicate")
    for table in ("jobs", "dead_jobs", "waiting", "waits"):
        assert value(conn, f"SELECT count(*) FROM outbox.{table}") == 0
    assert value(conn, "SELECT ended FROM outbox.approvals") == ("withdrawn" if wait is TIMED else None)
    if wait is TIMED:
        with pytest.raises(TooLate):
            outbox.approve(conn, pipeline, "a")
    assert not outbox.signal(conn, pipeline, "a", "payment").taken
    assert pipeline.cancel(conn, "a", by="tom") == "CANCELLED", "once more is no error"
    assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'CANCELLED'") == 1


@pytest.mark.parametrize("transaction", [False, True])
def test_what_a_running_attempt_returns_and_publishes_after_its_cancellation_counts_no_more(
    conn: Conn, dsn: str, transaction: bool
) -> None:
    def ask(run: Run[Order]) -> None:
        run.publish("orders.asked", {})
        with psycopg.connect(dsn, autocommit=True) as other:
            assert pipeline.cancel(other, "a") == "CANCELLED"

    pipeline = deployed(conn, orders(handler=ask, transaction=transaction))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    assert [row[0] for row in trail(conn)] == ["NEW", "ASKING", "CANCELLED"]
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 0
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_a_dead_job_goes_with_its_workflow(conn: Conn, dsn: str) -> None:
    def ask(run: Run[Order]) -> None:
        raise outbox.Reject("no")

    pipeline = deployed(conn, orders(handler=ask))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 1
    pipeline.cancel(conn, "a")
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0


def family(depth: int, cancelled: str | None, cancel: str | None, wait: bool) -> Pipeline[Task]:
    """Each task spawns another one, `depth` of them, and waits for it or doesn't."""
    tasks: Pipeline[Task] = Pipeline("tasks", data=Task, initial="NEW", final={"DONE", "STOPPED"}, cancelled=cancelled)

    @tasks.stage("split", on="NEW", to={"WAITING", "PARKED"})
    def split(run: Run[Task]) -> Any:
        if run.data.n >= depth:
            return outbox.Go("PARKED")
        run.spawn(tasks, f"t{run.data.n + 1}", Task(n=run.data.n + 1), cancel=cancel)
        return WaitForChildren(to="DONE", status="WAITING") if wait else outbox.Go("PARKED")

    tasks.allow("WAITING", to={"DONE", "STOPPED"})
    tasks.allow("PARKED", to={"DONE", "STOPPED"})
    return tasks


@pytest.mark.parametrize(
    ("cancel", "wait", "child"),
    [(None, True, "CANCELLED"), ("STOPPED", True, "STOPPED"), ("STOPPED", False, "STOPPED"), (None, False, "PARKED")],
    ids=["awaited", "by its own cancel, awaited", "by its own cancel", "on its own"],
)
def test_children_are_cancelled_by_their_own_cancel_or_if_they_are_awaited(
    conn: Conn, dsn: str, cancel: str | None, wait: bool, child: str
) -> None:
    tasks = deployed(conn, family(2, "CANCELLED", cancel, wait))
    tasks.submit(conn, "t0", Task())
    drain_all(conn, dsn, tasks)
    tasks.cancel(conn, "t0")
    for _ in range(3):
        drain(tasks, dsn)
    assert (status_of(conn, "t0"), status_of(conn, "t1")) == ("CANCELLED", child)
    grandchild = "CANCELLED" if cancel is None and wait else child
    assert status_of(conn, "t2") == grandchild, "and what the child waits for goes with it"


def test_a_parent_that_ends_otherwise_leaves_its_children_alone(conn: Conn, dsn: str) -> None:
    tasks = deployed(conn, family(1, "CANCELLED", None, True))
    tasks.submit(conn, "t0", Task())
    drain_all(conn, dsn, tasks)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'STOPPED' WHERE entity_id = 't0'")
    drain(tasks, dsn)
    assert status_of(conn, "t1") == "PARKED"


def test_a_plain_update_cancels_as_well(conn: Conn, dsn: str) -> None:
    tasks = deployed(conn, family(1, "CANCELLED", None, True))
    tasks.submit(conn, "t0", Task())
    drain_all(conn, dsn, tasks)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = 't0'")
    drain(tasks, dsn)
    assert status_of(conn, "t1") == "CANCELLED"


def test_what_cannot_be_cancelled_is_refused_by_name(conn: Conn, dsn: str) -> None:
    deployed(conn, plain := family(0, None, None, False))
    plain.submit(conn, "t", Task())
    with pytest.raises(NotCancellable, match='"tasks" has no status for cancelled workflows: entity "t" stays in NEW'):
        plain.cancel(conn, "t")
    with pytest.raises(NoWorkflow):
        plain.cancel(conn, "nobody")
    with pytest.raises(InvalidInput):
        plain.cancel(conn, "t", by="x" * 300)
    pipeline = deployed(conn, orders())
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'REFUSED' WHERE entity_id = 'a'")
    with pytest.raises(IllegalChange, match="too late to cancel it, it has ended in REFUSED") as refused:
        pipeline.cancel(conn, "a")
    assert (refused.value.from_status, refused.value.to_status) == ("REFUSED", "CANCELLED")


def test_it_can_be_awaited_on_an_async_connection_and_rolls_back_with_its_caller(conn: Conn, dsn: str) -> None:
    pipeline = submitted(conn, dsn, TIMED)

    async def cancel() -> str:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            status = await pipeline.cancel(other, "a", by="sarah")
            await other.rollback()
            return status

    assert asyncio.run(cancel()) == "CANCELLED"
    assert status_of(conn, "a") == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL") == 1


def test_a_deploy_says_where_cancelled_workflows_go(conn: Conn) -> None:
    assert "cancelled workflows go to: (none) -> CANCELLED" in outbox.deploy(conn, orders())["orders"]
    plain = family(0, None, None, False)
    assert not any("cancelled" in line for line in outbox.deploy(conn, plain)["tasks"])


def test_the_command_cancels(conn: Conn, dsn: str) -> None:
    submitted(conn, dsn, TIMED)
    run = Outbox(dsn)
    assert run("cancel", "a", "--by", "sarah", "--reason", "a duplicate").out == "a: WAITING -> CANCELLED\n"
    assert trail(conn)[-1] == ("CANCELLED", "sarah", "a duplicate")
    assert run("cancel", "a").out == "a is already in CANCELLED\n"
    run("cancel", "b", code=1)
