"""A status is renamed by a deploy: what waits in it, and what leads to it, goes on under the new name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.waits import HOUR, PAYMENT, TIMED, Order, Task, families, put_off, trail, waiting
from outbox import DefinitionError, Go, Pipeline, Run, Stranded, WaitForApproval, WaitForChildren, WaitForSignal
from outbox.definition import deploy
from outbox.engine import claim, commit
from outbox.engine.job import Finished
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]
NAMES = {"NEW": "ASKED", "WAITING": "IN_REVIEW", "PAID": "BOUGHT", "LATE": "EXPIRED"}


def orders_v2(wait: Any = None, **names: str) -> Pipeline[Order]:
    """`orders` with other names for its statuses."""
    at = {name: names.get(name, name) for name in ("NEW", "WAITING", "PAID", "LATE")}
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial=at["NEW"], final={"SENT", "REFUSED", at["LATE"]})
    pipeline.stage("ask", on=at["NEW"], to=at["WAITING"])(lambda run: wait)
    pipeline.stage("send", on=at["PAID"], to="SENT")(lambda run: None)
    pipeline.allow(at["WAITING"], to={at["PAID"], "REFUSED", at["LATE"]})
    for old, new in names.items():
        pipeline.rename(old, new)
    return pipeline


def test_a_question_keeps_its_answers_and_its_deadline_under_the_new_names(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    before = conn.execute("SELECT id, deadline FROM outbox.jobs").fetchall()
    newer = orders_v2(**NAMES)
    lines = deploy.deploy(conn, newer)
    assert "status WAITING is renamed to IN_REVIEW" in lines
    assert "status WAITING is removed" not in lines
    assert deploy.deploy(conn, newer) == deploy.check(conn, newer) == [], "a second time there is nothing to do"
    assert trail(conn)[-1] == ("IN_REVIEW", "outbox_owner", "renamed")
    assert conn.execute("SELECT id, deadline FROM outbox.jobs").fetchall() == before
    asked = conn.execute("SELECT status, options, ended_at FROM outbox.approvals").fetchall()
    assert asked == [("IN_REVIEW", {"approve": "BOUGHT", "reject": "REFUSED"}, None)]
    assert value(conn, "SELECT ended_by FROM outbox.waiting")["its deadline"] == "EXPIRED"
    assert outbox.approve(conn, newer, "a", by="sarah") == "BOUGHT"
    drain(newer, dsn)
    assert status_of(conn, "a") == "SENT"
    counted = conn.execute(
        "SELECT status, sum(workflows) FROM outbox.status_counts GROUP BY status HAVING sum(workflows) <> 0"
    ).fetchall()
    assert counted == [("SENT", 1)]


def test_a_deadline_moves_the_workflow_to_the_new_name(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    deploy.deploy(conn, newer := orders_v2(WAITING="IN_REVIEW", LATE="EXPIRED"))
    put_off(conn, 3601)
    drain(newer, dsn)
    assert trail(conn)[-1] == ("EXPIRED", "outbox", "deadline")
    assert value(conn, "SELECT ended FROM outbox.approvals") == "deadline"


def test_a_signal_still_moves_its_workflow(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, PAYMENT)
    deploy.deploy(conn, orders_v2(WAITING="AWAITED", PAID="BOUGHT"))
    assert outbox.signal(conn, "orders", "a", "payment", 7).taken
    assert status_of(conn, "a") == "BOUGHT"


def test_parents_and_children_of_renamed_pipelines_still_find_each_other(conn: Conn, dsn: str) -> None:
    wait: WaitForChildren[Any] = WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD"})
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task(), cancel="CANCELLED"), wait)
    deployed(conn, parents)
    deployed(conn, tasks)
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    newer: Pipeline[Task] = Pipeline("parents", data=Task, initial="NEW", final={"DONE", "BROKEN", "CANCELLED"})
    newer.stage("split", on="NEW", to="JOINING")(lambda run: None)
    newer.stage("merge", on="MERGED", to="DONE")(lambda run: None)
    newer.allow("JOINING", to={"MERGED", "BROKEN", "CANCELLED"})
    newer.rename("WAITING", "JOINING")
    newer.rename("FAILED", "BROKEN")
    deployed(conn, newer)
    small: Pipeline[Task] = Pipeline("tasks", data=Task, initial="NEW", final={"DONE", "WORSE", "STOPPED"})
    small.stage("work", on="NEW", to={"DONE", "WORSE"})(lambda run: Go("WORSE"))
    small.allow("NEW", to="STOPPED")
    small.rename("BAD", "WORSE")
    small.rename("CANCELLED", "STOPPED")
    deployed(conn, small)
    assert value(conn, "SELECT cancel_to FROM outbox.children") == "STOPPED"
    drain(small, dsn)
    assert (status_of(conn, "t"), status_of(conn, "p")) == ("WORSE", "BROKEN")


def test_jobs_and_dead_jobs_keep_their_attempts_and_their_key(conn: Conn, dsn: str) -> None:
    deployed(conn, orders_v2())
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('orders', 'a'), ('orders', 'b')")
    conn.execute("UPDATE outbox.jobs SET attempt = 3, error = 'oh'")
    conn.execute(
        "WITH j AS (DELETE FROM outbox.jobs USING outbox.workflow_states AS w WHERE w.id = workflow_id AND entity_id = 'b' "
        "RETURNING outbox.jobs.*) INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, "
        "attempts, error) SELECT workflow_id, pipeline, 'b', stage, status, entered, attempt, error FROM j"
    )
    jobs = conn.execute("SELECT id, stage, entered, attempt, error FROM outbox.jobs").fetchall()
    deploy.deploy(conn, orders_v2(NEW="ASKED"))
    assert conn.execute("SELECT id, stage, entered, attempt, error FROM outbox.jobs").fetchall() == jobs
    assert conn.execute("SELECT status FROM outbox.jobs").fetchall() == [("ASKED",)]
    assert conn.execute("SELECT stage, status, attempts FROM outbox.dead_jobs").fetchall() == [("ask", "ASKED", 3)]


def test_what_was_at_work_at_the_rename_changes_nothing_and_runs_again(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders_v2())
    pipeline.submit(conn, "a", Order())
    worker = value(conn, "INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 min') RETURNING id")
    lane = Lane(pipeline.stages["ask"], 1)
    claim.receive(
        worker,
        {("orders", "ask"): lane},
        conn.execute(*claim.request(worker, [(lane, 1)], 0, careful=True)).fetchall(),
    )
    deploy.deploy(conn, newer := orders_v2(NEW="ASKED", WAITING="IN_REVIEW"))
    (job,) = lane.waiting
    assert conn.execute(*commit.finish([(job, Finished("WAITING", None, []))])).fetchall() == []
    conn.execute(*commit.release([job]))
    drain(newer, dsn)
    assert status_of(conn, "a") == "IN_REVIEW"
    assert [row[0] for row in trail(conn)] == ["NEW", "ASKED", "IN_REVIEW"]


@pytest.mark.parametrize("transaction", [False, True])
def test_an_old_worker_whose_outcome_is_not_legal_any_more_leaves_the_job_to_newer_ones(
    conn: Conn, dsn: str, transaction: bool
) -> None:
    """The deploy comes while the old worker runs: it would go to a status that there is no more."""
    old: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})

    @old.stage("ask", on="NEW", to="OLD", transaction=transaction)
    def ask(run: Run[Order]) -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            deploy.deploy(other, newer)

    old.stage("end", on="OLD", to="DONE")(lambda run: None)
    newer: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})
    newer.stage("ask", on="NEW", to="RENAMED")(lambda run: None)
    newer.stage("end", on="RENAMED", to="DONE")(lambda run: None)
    newer.rename("OLD", "RENAMED")
    deployed(conn, old)
    old.submit(conn, "a", Order())
    drain(old, dsn)
    job = conn.execute("SELECT attempt, released, error FROM outbox.jobs").fetchone()
    assert job is not None
    assert job[:2] == (0, 1)
    assert job[2].startswith('unknown status: pipeline "orders", entity "a", from "NEW" to "OLD": the pipeline was')
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(newer, dsn)
    assert status_of(conn, "a") == "DONE"


LEADING = {
    "a question": lambda: WaitForApproval("?", options={"yes": "OLD"}, status="WAITING"),
    "a question's deadline": lambda: WaitForApproval(
        "?", options={"yes": "END"}, deadline=HOUR, on_deadline="OLD", status="WAITING"
    ),
    "a signal": lambda: WaitForSignal("go", to="OLD", status="WAITING"),
    "a signal's timeout": lambda: WaitForSignal("go", to="END", timeout=HOUR, on_timeout="OLD", status="WAITING"),
    "children": lambda: WaitForChildren(to="OLD", status="WAITING"),
    "children that fail": lambda: WaitForChildren(to="END", on_failure="OLD", failed={"BAD"}, status="WAITING"),
}


@pytest.mark.parametrize("kind", list(LEADING))
def test_an_old_worker_whose_wait_leads_to_a_former_name_leaves_the_job_to_newer_ones(
    conn: Conn, dsn: str, kind: str
) -> None:
    """The status in which it waits has not changed, but nothing could end the wait where it leads to."""
    old: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"OLD", "END"})

    @old.stage("ask", on="NEW", to="WAITING")
    def ask(run: Run[Order]) -> Any:
        with psycopg.connect(dsn, autocommit=True) as other:
            deploy.deploy(other, newer)
        return LEADING[kind]()

    old.allow("WAITING", to={"OLD", "END"})
    newer: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"NOW", "END"})
    newer.stage("ask", on="NEW", to="WAITING")(lambda run: WaitForSignal("go", to="NOW"))
    newer.allow("WAITING", to={"NOW", "END"})
    newer.rename("OLD", "NOW")
    deployed(conn, old)
    old.submit(conn, "a", Order())
    drain(old, dsn)
    assert status_of(conn, "a") == "NEW"
    (told,) = conn.execute("SELECT error FROM outbox.jobs WHERE (attempt, released) = (0, 1)").fetchone() or ("",)
    assert told.startswith('illegal change: pipeline "orders", entity "a", from "WAITING" to "OLD": the pipeline was')
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(newer, dsn)
    outbox.signal(conn, newer, "a", "go")
    assert status_of(conn, "a") == "NOW"


def test_a_status_may_be_renamed_again_and_a_database_may_have_the_oldest_name(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    twice = orders_v2(WAITING="IN_REVIEW")
    twice.renames = {"WAITING": "REVIEWED", "REVIEWED": "IN_REVIEW"}
    assert "status WAITING is renamed to IN_REVIEW" in deploy.deploy(conn, twice)
    assert outbox.approve(conn, twice, "a") == "PAID"


def test_two_statuses_may_become_one(conn: Conn, dsn: str) -> None:
    first: Pipeline[Any] = Pipeline("p", initial="A", final={"DONE"})
    first.allow("A", to={"B", "DONE"})
    first.stage("work", on="B", to="DONE")(lambda run: None)
    deployed(conn, first)
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a'), ('p', 'b')")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'B' WHERE entity_id = 'b'")
    one: Pipeline[Any] = Pipeline("p", initial="B", final={"DONE"})
    one.stage("work", on="B", to="DONE")(lambda run: None)
    one.rename("A", "B")
    deployed(conn, one)
    drain(one, dsn)
    assert (status_of(conn, "a"), status_of(conn, "b")) == ("DONE", "DONE")


def test_a_question_whose_answer_leads_to_where_it_waits_after_the_rename_is_refused(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, WaitForApproval("?", options={"wait": "LATE", "pay": "PAID"}))
    merged: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "REFUSED"})
    merged.stage("ask", on="NEW", to="LATE")(lambda run: None)
    merged.stage("send", on="PAID", to="SENT")(lambda run: None)
    merged.allow("LATE", to={"PAID", "REFUSED"})
    merged.rename("WAITING", "LATE")
    with pytest.raises(Stranded) as refused:
        deploy.deploy(conn, merged)
    (problem,) = refused.value.problems
    assert problem.endswith("(a), and both are called LATE from now on. Move them on first"), problem


def test_a_rename_to_a_status_that_a_stage_takes_asks_what_becomes_of_the_questions(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    newer = orders_v2(WAITING="IN_REVIEW")
    newer.stage("judge", on="IN_REVIEW", to="PAID")(lambda run: None)
    with pytest.raises(Stranded, match="stage judge takes IN_REVIEW"):
        deploy.deploy(conn, newer)
    newer.take_over("IN_REVIEW")
    deploy.deploy(conn, newer)
    assert value(conn, "SELECT stage FROM outbox.jobs") == "judge"
    drain(newer, dsn)
    assert status_of(conn, "a") == "SENT"


@pytest.mark.parametrize("wait", [TIMED, PAYMENT], ids=["a question", "a signal"])
def test_the_check_before_a_deploy_knows_the_new_names(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, wait: Any
) -> None:
    waiting(conn, dsn, wait)
    monkeypatch.setattr("apps.cli.orders", orders_v2(WAITING="IN_REVIEW", LATE="TOO_LATE"))
    said = Outbox(dsn)("deploy", "--check", "--app", "apps.cli:orders")
    assert "orders: status WAITING is renamed to IN_REVIEW\n" in said.out
    assert (said.err, value(conn, "SELECT current_status FROM outbox.workflow_states")) == ("", "WAITING")


def test_others_cannot_rename(conn: Conn, dsn: str) -> None:
    """What the deploy tells the trigger is told to nobody else, and is over with the deploy."""
    waiting(conn, dsn, TIMED)
    deploy.deploy(conn, orders_v2(WAITING="IN_REVIEW"))
    assert value(conn, "SELECT renaming FROM outbox.pipelines") is None
    with pytest.raises(psycopg.DatabaseError, match="illegal change"):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW'")


@pytest.mark.parametrize(
    ("renames", "error"),
    [
        ({"PAID": "NEW"}, "this version still has the status PAID"),
        ({"OLD": "NOWHERE"}, "this version has no status NOWHERE"),
        ({"OLD": "OTHER", "OTHER": "OLD"}, "this version has no status"),
    ],
)
def test_a_rename_that_makes_no_sense_is_refused(conn: Conn, renames: dict[str, str], error: str) -> None:
    pipeline = orders_v2()
    for old, new in renames.items():
        pipeline.rename(old, new)
    with pytest.raises(DefinitionError, match=error):
        deploy.deploy(conn, pipeline)
    with pytest.raises(DefinitionError):
        pipeline.rename(next(iter(renames)), "SENT")


def test_a_deadline_of_the_pipeline_is_renamed_with_its_definition(conn: Conn) -> None:
    def timed(status: str, to: str) -> Pipeline[Any]:
        pipeline: Pipeline[Any] = Pipeline("p", initial=status, final={to})
        pipeline.deadline(status, hours=1, to=to)
        return pipeline

    deployed(conn, timed("A", "X"))
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    newer = timed("B", "Y")
    newer.rename("A", "B")
    newer.rename("X", "Y")
    until = value(conn, "SELECT deadline FROM outbox.jobs")
    deployed(conn, newer)
    assert conn.execute("SELECT status, on_deadline, deadline FROM outbox.jobs").fetchall() == [("B", "Y", until)]
    assert timedelta(0) < until - value(conn, "SELECT now()") < timedelta(hours=1)
