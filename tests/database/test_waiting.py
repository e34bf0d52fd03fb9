"""The view outbox.waiting: one row for each open wait, of every kind, at any size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from pytest_postgresql.executors import NoopExecutor

from kit.commands import Outbox
from kit.databases import clone
from kit.pipelines import deployed, drain, status_of
from kit.servers import PostgresServer
from kit.waits import HOUR, PAYMENT, QUESTION, TIMED, Order, Task, families, orders, put_off, waiting
from outbox import Go, Pipeline, Retry, Run, WaitForChildren, WaitForSignal, decide, signal
from outbox.database import statements

Conn = psycopg.Connection[Any]
WAITS = """SELECT pipeline, entity_id, status, kind, waits_for, until - now() BETWEEN '59 min' AND '61 min' AS in_an_hour, ended_by
FROM outbox.waiting ORDER BY entity_id, kind"""
SOON = """SELECT count(*) FROM outbox.waiting WHERE since BETWEEN now() - interval '1 minute' AND now()"""


def waits(conn: Conn) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(WAITS).fetchall()
    counted = conn.execute(SOON).fetchone()
    assert counted == (len(found),), "each waits since just now"
    return found


def row(kind: str, waits_for: str, in_an_hour: bool | None, ended_by: dict[str, str], **other: str) -> dict[str, Any]:
    place = {"pipeline": "orders", "entity_id": "a", "status": "WAITING", **other}
    return {**place, "kind": kind, "waits_for": waits_for, "in_an_hour": in_an_hour, "ended_by": ended_by}


ANSWERS = {"the answer approve": "PAID", "the answer reject": "REFUSED"}


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (QUESTION, row("approval", "Pay it?", None, ANSWERS)),
        (TIMED, row("approval", "Pay it?", True, {**ANSWERS, "its deadline": "LATE"})),
        (WaitForSignal("paid", to="PAID"), row("signal", "signal paid", None, {"the signal paid": "PAID"})),
        (PAYMENT, row("signal", "signal payment", True, {"the signal payment": "PAID", "its deadline": "LATE"})),
    ],
    ids=["approval", "approval with a deadline", "signal", "signal with a deadline"],
)
def test_what_a_handler_waits_for_is_one_row(conn: Conn, dsn: str, wait: Any, expected: dict[str, Any]) -> None:
    waiting(conn, dsn, wait)
    assert waits(conn) == [expected]


def test_children_at_work_are_counted(conn: Conn, dsn: str) -> None:
    def spawn(run: Run[Task]) -> None:
        for n in range(3):
            run.spawn(tasks, f"t{n}", Task(n=n))

    wait = WaitForChildren(to="MERGED", failed={"BAD"}, on_failure="FAILED", timeout=HOUR, on_timeout="CANCELLED")
    parents, tasks = families(spawn, wait)
    deployed(conn, tasks)
    deployed(conn, parents).submit(conn, "a", Task())
    drain(parents, dsn)
    ends = {"its children": "MERGED", "a failed child": "FAILED", "its deadline": "CANCELLED"}
    assert waits(conn) == [row("children", "3 children", True, ends, pipeline="parents")]
    for n in range(2):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = %s", [f"t{n}"])
    assert waits(conn) == [row("children", "1 child", True, ends, pipeline="parents")]


def test_a_deadline_of_the_pipeline_is_a_row_unless_a_handler_waits_for_something(conn: Conn, dsn: str) -> None:
    pipeline = orders(lambda run: QUESTION if run.entity_id == "a" else None)
    pipeline.deadline("WAITING", hours=1, to="LATE")
    pipeline.deadline("NEW", hours=1, to="WAITING")
    deployed(conn, pipeline).submit_many(conn, [("a", Order()), ("b", Order())])
    drain(pipeline, dsn)
    pipeline.submit(conn, "c", Order())
    assert waits(conn) == [
        row("approval", "Pay it?", True, {**ANSWERS, "its deadline": "LATE"}),
        row("deadline", "a change of its status", True, {"its deadline": "LATE"}, entity_id="b"),
        row("deadline", "stage ask", True, {"its deadline": "WAITING"}, entity_id="c", status="NEW"),
    ]


def test_a_job_that_is_due_later_is_a_timer(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT"})

    @pipeline.stage("pay", on="NEW", to="WAITING")
    def pay(run: Run[Order]) -> Go[Order]:
        if run.entity_id == "b":
            raise Retry(after=timedelta(hours=1))
        return Go("WAITING", after=HOUR)

    pipeline.stage("send", on="WAITING", to="SENT")(lambda run: None)
    deployed(conn, pipeline).submit_many(conn, [("a", Order()), ("b", Order())])
    drain(pipeline, dsn)
    assert waits(conn) == [
        row("timer", "stage send", True, {}),
        row("timer", "attempt 2 of stage pay", True, {}, entity_id="b", status="NEW"),
    ]
    put_off(conn, 3601)
    assert waits(conn) == []


@pytest.mark.parametrize(
    ("wait", "end"),
    [
        (TIMED, lambda conn, pipeline: decide(conn, pipeline, "a", "approve", by="sarah")),
        (PAYMENT, lambda conn, pipeline: signal(conn, pipeline, "a", "payment")),
        (TIMED, lambda conn, pipeline: conn.execute("UPDATE outbox.workflow_states SET current_status = 'REFUSED'")),
    ],
    ids=["decided", "signalled", "set by hand"],
)
def test_a_wait_that_has_ended_is_no_row(conn: Conn, dsn: str, wait: Any, end: Callable[..., Any]) -> None:
    pipeline = waiting(conn, dsn, wait)
    end(conn, pipeline)
    assert status_of(conn, "a") != "WAITING"
    assert waits(conn) == []


# Who reads it.


def test_show_tells_what_a_workflow_waits_for(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    outbox = Outbox(dsn)
    found = outbox("show", "a", "--json").json["waits_for"]
    assert (found["kind"], found["waits_for"], found["assignee"]) == ("approval", "Pay it?", "sarah")
    assert found["ended_by"] == {**ANSWERS, "its deadline": "LATE"}
    assert "the answer approve" in outbox("show", "a").out


def test_status_tells_which_waits_are_past_their_deadline(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, TIMED)
    outbox = Outbox(dsn)
    assert outbox("status", "--json").json["overdue"] == []
    put_off(conn, 3 * 3600)
    (found,) = outbox("status", "--json").json["overdue"]
    assert (found["status"], found["kind"], found["workflows"]) == ("WAITING", "approval", 1)
    assert 2 * 3600 <= found["overdue_seconds"] < 3 * 3600
    assert ["orders", "WAITING", "approval", "1", "2h"] in [line.split() for line in outbox("status").out.splitlines()]


# At any size.

MANY = """
    SET session_replication_role = replica; -- no triggers, so this is quick; the books are written by hand
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status)
    SELECT 'orders', k || n, 'WAITING' FROM generate_series(1, 20000) AS n, unnest('{a,s,c,d,t,x}'::text[]) AS k;
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options)
    SELECT w.id, w.pipeline, w.entity_id, w.current_status, 1, '?', '', '{"yes": "PAID"}'
    FROM outbox.workflow_states AS w WHERE w.entity_id LIKE 'a%';
    INSERT INTO outbox.waits (workflow_id, signal, children, to_status)
    SELECT w.id, CASE WHEN w.entity_id LIKE 's%' THEN 'paid' END, CASE WHEN w.entity_id LIKE 'c%' THEN 2 END, 'PAID'
    FROM outbox.workflow_states AS w WHERE w.entity_id ~ '^[sc]';
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, run_at, due, deadline, on_deadline)
    SELECT w.id, w.pipeline, CASE WHEN w.entity_id LIKE 't%' THEN 'send' END, w.current_status, 1, now() + interval '1 day', false,
           CASE WHEN w.entity_id NOT LIKE 't%' THEN now() + interval '1 day' END,
           CASE WHEN w.entity_id NOT LIKE 't%' THEN 'LATE' END
    FROM outbox.workflow_states AS w WHERE w.entity_id NOT LIKE 'x%';
    UPDATE outbox.jobs SET deadline = now() - interval '1 hour'
    WHERE workflow_id IN (SELECT w.id FROM outbox.workflow_states AS w WHERE w.entity_id IN ('a1', 's1', 'c1', 'd1'));
    ANALYZE outbox.workflow_states, outbox.approvals, outbox.waits, outbox.jobs;
"""


@pytest.fixture(scope="module")
def many(server: PostgresServer, template: NoopExecutor) -> Iterator[Conn]:
    with clone(template, "many_waits") as dsn, server.admin("many_waits") as admin:
        admin.execute(MANY)
        with psycopg.connect(dsn, autocommit=True) as conn:
            yield conn


OVERDUE = 4
"""Workflows of MANY whose deadline has passed."""


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize(
    ("module", "name", "params"),
    [
        *(("look", "waiting_of_workflow", {"entity": f"{kind}5"}) for kind in "ascdtx"),
        ("look", "overdue", {}),
        ("doctor", "waits_overdue", {}),
    ],
)
def test_the_view_reads_only_what_it_is_asked_for(many: Conn, module: str, name: str, params: dict[str, Any]) -> None:
    if params:
        found = many.execute(
            "SELECT id FROM outbox.workflow_states WHERE entity_id = %s", [params["entity"]]
        ).fetchone()
        params = {"id": found and found[0]}
    statement = statements.load(module)[name]
    explained = many.execute(b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, params).fetchone()
    assert explained is not None
    plan = (explained[0] if isinstance(explained[0], list) else json.loads(explained[0]))[0]["Plan"]
    scans = [node for node in nodes(plan) if node.get("Relation Name") not in (None, "legal_changes")]
    assert scans
    for scan in scans:
        assert scan["Node Type"] in ("Index Scan", "Index Only Scan"), scan
        read = scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)
        assert read * scan["Actual Loops"] < OVERDUE + 1, scan
        # Down an index, and to the rows: which table comes first is the planner's choice, how much a look costs is not.
        pages = scan["Shared Hit Blocks"] + scan["Shared Read Blocks"]
        assert pages < 10 * max(scan["Actual Loops"], 1), scan
