"""Deploys while workflows wait: nothing that they wait for is left open, taken away or lost without a word."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import HOUR, PAYMENT, QUESTION, TIMED, Order, Task, families, orders, waiting
from outbox import DefinitionError, Pipeline, Stranded, TooLate, WaitForApproval, WaitForChildren
from outbox.definition import deploy

Conn = psycopg.Connection[Any]


def automated(*taken_over: str) -> Pipeline[Order]:
    """The next version of `orders`: a stage takes the status in which workflows wait."""
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED", "LATE"})
    pipeline.stage("ask", on="NEW", to="WAITING")(lambda run: None)
    pipeline.stage("judge", on="WAITING", to={"PAID", "REFUSED"})(lambda run: outbox.Go("REFUSED"))
    pipeline.stage("send", on="PAID", to="SENT")(lambda run: None)
    pipeline.allow("WAITING", to="LATE")
    if taken_over:
        pipeline.take_over(*taken_over)
    return pipeline


def deadlines(conn: Conn) -> list[tuple[Any, ...]]:
    """Each running deadline: the stage beside which it runs, where it leads, and in how many minutes."""
    return conn.execute(
        "SELECT stage, status, on_deadline, round(extract(epoch FROM deadline - now()) / 60)::integer FROM outbox.jobs "
        "WHERE deadline IS NOT NULL ORDER BY workflow_id"
    ).fetchall()


@pytest.mark.parametrize("wait", [QUESTION, TIMED, PAYMENT], ids=["question", "question with a deadline", "signal"])
def test_a_stage_on_a_status_in_which_workflows_wait_is_refused(conn: Conn, dsn: str, wait: Any) -> None:
    waiting(conn, dsn, wait)
    before = conn.execute("SELECT waits_for, until FROM outbox.waiting").fetchall()
    for act in (deploy.check, deploy.deploy):
        with pytest.raises(Stranded) as refused:
            act(conn, automated())
        assert refused.value.workflows == {"WAITING": 1}
        for text in (
            "stage judge takes WAITING, in which 1 workflow waits (1 for ",
            ": a)",
            'take_over("WAITING")',
            "outbox deploy --end-waits",
        ):
            assert text in str(refused.value)
    assert conn.execute("SELECT waits_for, until FROM outbox.waiting").fetchall() == before
    assert value(conn, "SELECT stage FROM outbox.routes WHERE status = 'WAITING'") is None


def test_a_stage_that_takes_over_ends_the_questions_and_keeps_the_deadlines(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    lines = deploy.deploy(conn, automated("WAITING"))
    assert "WAITING: stage judge takes over, and 1 wait ends (1 for approval: a)" in lines
    ended = conn.execute("SELECT ended, decision, reason FROM outbox.approvals").fetchall()
    assert ended == [("withdrawn", None, "stage judge takes WAITING")]
    assert deadlines(conn) == [("judge", "WAITING", "LATE", 60)]
    for by in ("ann", "bob"):
        with pytest.raises(TooLate, match="the question was withdrawn: stage judge takes WAITING by "):
            outbox.approve(conn, "orders", "a", by=by)
    assert deploy.deploy(conn, automated("WAITING")) == []
    drain(automated(), dsn)
    assert status_of(conn, "a") == "REFUSED"


def test_a_signal_that_comes_after_the_take_over_is_kept_and_moves_nothing(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, PAYMENT)
    deploy.deploy(conn, automated(), end_waits=True)
    assert not outbox.signal(conn, "orders", "a", "payment", {}).taken
    assert status_of(conn, "a") == "WAITING"
    drain(automated(), dsn)
    assert not outbox.signal(conn, "orders", "a", "payment", {}).taken, "and it is no error for the sender"
    assert status_of(conn, "a") == "REFUSED"


def test_a_stage_that_takes_over_ends_a_wait_for_children(conn: Conn, dsn: str) -> None:
    wait: WaitForChildren[Any] = WaitForChildren(to="MERGED", timeout=HOUR, on_timeout="FAILED")
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task()), wait)
    deployed(conn, parents)
    deployed(conn, tasks)
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    newer: Pipeline[Task] = Pipeline("parents", data=Task, initial="NEW", final={"DONE", "FAILED", "CANCELLED"})
    newer.stage("split", on="NEW", to="WAITING")(lambda run: None)
    newer.stage("look", on="WAITING", to="MERGED")(lambda run: None)
    newer.stage("merge", on="MERGED", to="DONE")(lambda run: None)
    newer.allow("WAITING", to={"FAILED", "CANCELLED"})
    with pytest.raises(Stranded, match="1 for children: p"):
        deploy.deploy(conn, newer)
    deploy.deploy(conn, newer, end_waits=True)
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 0
    assert deadlines(conn) == [("look", "WAITING", "FAILED", 60)]
    drain(tasks, dsn)
    assert (status_of(conn, "t"), status_of(conn, "p")) == ("DONE", "WAITING")


def test_a_take_over_of_a_status_that_no_stage_takes_is_an_error(conn: Conn) -> None:
    pipeline = automated("WAITNG")
    with pytest.raises(DefinitionError, match="no stage takes WAITNG"):
        deploy.check(conn, pipeline)


def test_a_deploy_that_takes_a_stage_away_keeps_the_deadlines_that_run(conn: Conn) -> None:
    def timed(*, stage: bool, minutes: float = 60) -> Pipeline[Any]:
        pipeline: Pipeline[Any] = Pipeline("p", initial="A", final={"X", "DONE"})
        if stage:
            pipeline.stage("work", on="A", to="DONE")(lambda run: None)
        pipeline.allow("A", to="DONE")
        pipeline.deadline("A", minutes=minutes, to="X")
        return pipeline

    deployed(conn, timed(stage=True))
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    conn.execute("UPDATE outbox.jobs SET deadline = deadline - interval '50 minutes', owner = 7, attempt = 3")
    job = value(conn, "SELECT id FROM outbox.jobs")
    deployed(conn, timed(stage=False))
    assert deadlines(conn) == [(None, "A", "X", 10)]
    assert conn.execute("SELECT owner, attempt, due, run_at = deadline FROM outbox.jobs").fetchall() == [
        (None, 0, False, True)
    ]
    assert value(conn, "SELECT id FROM outbox.jobs") > job, "what a worker does with the old job no longer counts"
    deployed(conn, timed(stage=True, minutes=90))
    assert deadlines(conn) == [("work", "A", "X", 10)], "and the way back"
    assert value(conn, "SELECT due AND run_at <= clock_timestamp() FROM outbox.jobs")


def reviewed(*targets: str, deadline: str = "LATE", by_pipeline: bool = False) -> Pipeline[Order]:
    """`orders`, whose WAITING leads to these statuses."""
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED", "LATE", "GONE"})
    pipeline.stage("ask", on="NEW", to="WAITING")(lambda run: TIMED)
    pipeline.stage("send", on="PAID", to="SENT")(lambda run: None)
    pipeline.allow("WAITING", to=targets)
    if by_pipeline:
        pipeline.deadline("WAITING", hours=1, to=deadline)
    return pipeline


@pytest.mark.parametrize(
    ("wait", "left", "words"),
    [
        (TIMED, {"REFUSED", "LATE"}, "the answer approve, which leads to PAID"),
        (TIMED, {"PAID", "REFUSED"}, "its deadline, which leads to LATE"),
        (PAYMENT, {"REFUSED", "LATE"}, "the signal payment, which leads to PAID"),
    ],
)
def test_a_change_that_a_wait_needs_cannot_be_taken_away(
    conn: Conn, dsn: str, wait: Any, left: set[str], words: str
) -> None:
    waiting(conn, dsn, wait)
    with pytest.raises(Stranded) as refused:
        deploy.deploy(conn, reviewed(*left))
    assert f"1 workflow in WAITING waits for {words} (a)," in str(refused.value)
    assert '.allow("WAITING", to="' in str(refused.value)
    deploy.deploy(conn, reviewed("PAID", "REFUSED", "LATE"))
    outbox.approve(conn, "orders", "a") if wait is TIMED else outbox.signal(conn, "orders", "a", "payment")
    deploy.deploy(conn, reviewed(*left))


def test_a_deadline_that_leads_elsewhere_from_now_on_takes_the_running_ones_along(conn: Conn) -> None:
    first = reviewed("PAID", deadline="LATE", by_pipeline=True)
    deployed(conn, first)
    conn.execute("INSERT INTO outbox.workflow_states VALUES (DEFAULT, 'orders', 'a', 'WAITING')")
    deploy.deploy(conn, reviewed("PAID", deadline="GONE", by_pipeline=True))
    assert deadlines(conn) == [(None, "WAITING", "GONE", 60)]
    with pytest.raises(Stranded, match="its deadline, which leads to GONE"):
        deploy.deploy(conn, reviewed("PAID"))


def test_a_deploy_that_changes_something_else_is_not_refused_for_what_was_illegal_before(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    conn.execute('UPDATE outbox.approvals SET options = options || \'{"else": "NOWHERE"}\'')
    newer = orders(TIMED)
    newer.allow("WAITING", to="ELSEWHERE")
    assert "new legal change WAITING -> ELSEWHERE" in deploy.deploy(conn, newer)


def test_the_command_ends_waits_only_if_it_is_told_to(conn: Conn, dsn: str) -> None:
    pipeline = orders(WaitForApproval("?", options={"approve": "PAID"}, deadline=timedelta(days=2), on_deadline="LATE"))
    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    run = Outbox(dsn)
    said = run("deploy", "--app", "apps.cli:automated", code=1).err
    assert "stage judge takes WAITING" in said
    assert said.startswith(run("deploy", "--check", "--app", "apps.cli:automated", code=1).err)
    said = run("deploy", "--app", "apps.cli:automated", "--end-waits").out
    assert "WAITING: stage judge takes over, and 1 wait ends (1 for approval: a)" in said
