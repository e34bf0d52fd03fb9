"""What a workflow waits for: a time, a person, a signal. A wait is a status, and what ends it changes the status."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import DEADLINE
from kit.waits import HOUR, TIMED, Order, orders, put_off, trail, waiting
from outbox import DefinitionError, Go, InvalidInput, Pipeline, Run, WaitForApproval, WaitForSignal, signal
from outbox.definition.waits.wait import Wait, WaitJson

Conn = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class WaitForPost(Wait):
    """A kind of wait that only this test knows: a signal by another name."""

    to: str
    status: str | None = None
    data: Any = None

    @property
    def leads_to(self) -> list[str]:
        return [self.to]

    def as_wait(self) -> WaitJson:
        return {"signal": "post", "to_status": self.to}


# Time.


@pytest.mark.parametrize("how", ["after", "at"])
def test_go_puts_the_next_job_off(conn: Conn, dsn: str, how: str) -> None:
    later: dict[str, Any] = {"after": HOUR} if how == "after" else {"at": datetime.now(UTC) + HOUR}
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT"})

    @pipeline.stage("ask", on="NEW", to="PAID")
    async def ask(run: Run[Order]) -> Go[Order]:
        return Go("PAID", **later)

    @pipeline.stage("send", on="PAID", to="SENT")
    async def send(run: Run[Order]) -> None:
        pass

    deployed(conn, pipeline).submit(conn, "a", Order())
    before = value(conn, "SELECT now()")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "PAID"
    run_at, due, now = conn.execute("SELECT run_at, due, now() FROM outbox.jobs").fetchone() or (None, None, None)
    assert not due
    assert run_at == later["at"] if how == "at" else before + HOUR <= run_at <= now + HOUR
    assert value(conn, "SELECT scheduled FROM outbox.overview WHERE status = 'PAID'") == 1
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_a_deadline_moves_what_stands_in_a_status(conn: Conn, dsn: str) -> None:
    pipeline = orders(None)
    pipeline.deadline("WAITING", hours=1, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Order())
    pipeline.submit(conn, "b", Order())
    before = value(conn, "SELECT now()")
    drain(pipeline, dsn)
    jobs = "SELECT stage, on_deadline, deadline - interval '1 hour' BETWEEN %s AND now() FROM outbox.jobs"
    assert conn.execute(jobs, (before,)).fetchall() == [(None, "LATE", True)] * 2
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'PAID' WHERE entity_id = 'b'")
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), status_of(conn, "b")) == ("LATE", "SENT")
    assert trail(conn)[-1] == ("LATE", "outbox", "deadline")
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_a_deadline_counts_while_a_stage_is_at_work_on_it(conn: Conn, dsn: str) -> None:
    """Retries and a running handler don't stop it, nor does the in-progress status."""
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "LATE"})

    @pipeline.stage("work", on="NEW", to="SENT", running="WORKING")
    async def work(run: Run[Order]) -> None:
        put_off(conn, 3601)
        raise ValueError("not yet")

    pipeline.deadline("NEW", hours=1, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "LATE"
    assert [status for status, *_ in trail(conn)] == ["NEW", "WORKING", "LATE"]


def test_a_deadline_that_leads_nowhere_any_more_holds_up_no_other(conn: Conn, dsn: str) -> None:
    pipeline = orders(None)
    pipeline.deadline("WAITING", hours=1, to="LATE")
    deployed(conn, pipeline).submit_many(conn, [("a", Order()), ("b", Order())])
    drain(pipeline, dsn)
    conn.execute(
        "UPDATE outbox.jobs SET on_deadline = 'NOWHERE' WHERE workflow_id = "
        "(SELECT id FROM outbox.workflow_states WHERE entity_id = 'a')"
    )
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), status_of(conn, "b")) == ("WAITING", "LATE")


# What handlers may return, and pipelines say.


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (WaitForApproval("?", options={"yes": "NOWHERE"}), "which is not a legal change"),
        (WaitForSignal("s", to="SENT"), "which is not a legal change"),
        (WaitForPost("SENT"), "which is not a legal change"),
        (WaitForSignal("s", to="PAID", status="PAID"), "may not go to 'PAID'"),
        (Go("WAITING", after=HOUR), "no stage takes it"),
    ],
)
def test_a_wait_that_can_not_end_is_a_defect_of_the_handler(conn: Conn, dsn: str, outcome: Any, words: str) -> None:
    pipeline = deployed(conn, orders(outcome))
    pipeline.submit(conn, "a", Order())
    deadline = time.monotonic() + DEADLINE
    while not value(conn, "SELECT count(*) FROM outbox.dead_jobs") and time.monotonic() < deadline:
        drain(pipeline, dsn)
    assert words in value(conn, "SELECT error FROM outbox.dead_jobs")


@pytest.mark.parametrize(
    "make",
    [
        lambda: WaitForApproval(""),
        lambda: WaitForApproval("?", options={}),
        lambda: WaitForApproval("?", options={"(deadline)": "PAID"}),
        lambda: WaitForApproval("?", deadline=HOUR),
        lambda: WaitForApproval("?", deadline=3, on_deadline="LATE"),  # type: ignore[arg-type]
        lambda: WaitForApproval("?", remind_every=timedelta(0)),
        lambda: WaitForSignal("s\0", to="PAID"),
        lambda: WaitForSignal("s", to="PAID", timeout=-HOUR, on_timeout="LATE"),
        lambda: Go("X", after=HOUR, at=datetime.now(UTC)),
        lambda: Go("X", at=datetime(2030, 1, 1)),
        lambda: Go("X", after=timedelta(days=40_000)),
    ],
)
def test_what_can_not_be_waited_for_is_refused_at_once(make: Callable[[], Any]) -> None:
    with pytest.raises(InvalidInput):
        make()


@pytest.mark.parametrize(
    ("status", "to", "time"),
    [
        ("SENT", "LATE", {"days": 1}),
        ("WAITING", "WAITING", {"days": 1}),
        ("WAITING", "LATE", {}),
        ("WAITING", "LATE", {"days": -1}),
        ("WAITING", "LATE", {"days": "two"}),
    ],
)
def test_a_deadline_that_makes_no_sense_is_refused_at_once(status: str, to: str, time: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        orders(None).deadline(status, to=to, **time)


# The protocol.


def test_a_new_kind_of_wait_is_one_class(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, WaitForPost("PAID"))
    assert status_of(conn, "a") == "WAITING"
    assert signal(conn, pipeline, "a", "post").taken
    assert status_of(conn, "a") == "PAID"


def test_no_other_module_knows_the_kinds_of_wait() -> None:
    package = Path(outbox.__file__).parent
    waits = package / "definition" / "waits"
    naming = {file for file in package.rglob("*.py") if "WaitFor" in file.read_text(encoding="utf-8")}
    # Frameworks' agents ask questions as applications do.
    users = {package / "__init__.py", *(package / "agents").rglob("*.py")}
    assert {file for file in naming if waits not in file.parents} <= users


def test_what_is_waited_for_is_gone_with_its_workflow(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    signal(conn, pipeline, "a", "payment")
    conn.execute("DELETE FROM outbox.workflow_states")
    left = [value(conn, f"SELECT count(*) FROM outbox.{table}") for table in ("jobs", "approvals", "signals", "waits")]
    assert left == [0, 0, 0, 0]
