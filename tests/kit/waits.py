"""Defines pipelines that wait: for a decision, a signal, a time or their children."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
from pydantic import BaseModel

from kit.pipelines import QUICK, deployed, drain, status_of
from outbox import Go, Pipeline, Run, WaitForApproval, WaitForSignal

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)


class Order(BaseModel):
    total: int = 0
    payment: dict[str, Any] | None = None


def orders(outcome: Any, **options: Any) -> Pipeline[Order]:
    """Returns NEW -> WAITING, for which the stage returns `outcome`; then PAID, REFUSED or LATE; PAID -> SENT."""
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED", "LATE"})

    @pipeline.stage("ask", on="NEW", to="WAITING", retry=QUICK, **options)
    async def ask(run: Run[Order]) -> Any:
        return outcome(run) if callable(outcome) else outcome

    @pipeline.stage("send", on="PAID", to="SENT")
    async def send(run: Run[Order]) -> None:
        pass

    pipeline.allow("WAITING", to={"PAID", "REFUSED", "LATE"})
    return pipeline


def waiting(conn: Conn, dsn: str, outcome: Any, **options: Any) -> Pipeline[Order]:
    """Deploys, submits "a", and runs it until it waits."""
    pipeline = deployed(conn, orders(outcome, **options))
    pipeline.submit(conn, "a", Order(total=5))
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING"
    return pipeline


def trail(conn: Conn, entity: str = "a") -> list[tuple[Any, ...]]:
    return conn.execute(
        "SELECT to_status, actor, reason FROM outbox.state_changes AS c JOIN outbox.workflow_states AS w "
        "ON w.id = c.workflow_id WHERE entity_id = %s ORDER BY c.version",
        (entity,),
    ).fetchall()


def put_off(conn: Conn, seconds: float) -> None:
    """Moves waiting workflows so many seconds nearer to their deadlines and reminders."""
    conn.execute(
        "UPDATE outbox.jobs SET run_at = run_at - make_interval(secs => %(s)s), "
        "deadline = deadline - make_interval(secs => %(s)s)",
        {"s": seconds},
    )
    conn.execute("UPDATE outbox.approvals SET remind_at = remind_at - make_interval(secs => %s)", (seconds,))


QUESTION = WaitForApproval("Pay it?", options={"approve": "PAID", "reject": "REFUSED"})
TIMED = WaitForApproval(
    "Pay it?", options={"approve": "PAID", "reject": "REFUSED"}, assignee="sarah", deadline=HOUR, on_deadline="LATE"
)


PAYMENT = WaitForSignal("payment", to="PAID", into="payment", timeout=HOUR, on_timeout="LATE")


class Task(BaseModel):
    n: int = 0


def families(
    spawn: Callable[[Run[Task]], Any], wait: Any, work: Callable[[Run[Task]], Any] = lambda run: None, **options: Any
) -> tuple[Pipeline[Task], Pipeline[Task]]:
    """Returns `parents` NEW -> WAITING (-> MERGED, FAILED, CANCELLED), and `tasks` NEW -> DONE, BAD, CANCELLED."""
    tasks: Pipeline[Task] = Pipeline("tasks", data=Task, initial="NEW", final={"DONE", "BAD", "CANCELLED"})
    tasks.stage("work", on="NEW", to={"DONE", "BAD"}, retry=QUICK)(lambda run: work(run) or Go("DONE"))
    tasks.allow("NEW", to="CANCELLED")
    parents: Pipeline[Task] = Pipeline("parents", data=Task, initial="NEW", final={"DONE", "FAILED", "CANCELLED"})

    @parents.stage("split", on="NEW", to="WAITING", retry=QUICK, **options)
    async def split(run: Run[Task]) -> Any:
        spawn(run)
        return wait

    parents.stage("merge", on="MERGED", to="DONE")(lambda run: None)
    parents.allow("WAITING", to={"MERGED", "FAILED", "CANCELLED"})
    return parents, tasks
