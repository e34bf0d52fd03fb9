"""Triggers of others on workflow_states: what they move on, delete or keep, and what the engine makes of it."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import QUICK, drain, drain_all, status_of, value
from kit.waits import PAYMENT, QUESTION, Order, trail, waiting
from outbox import Go, Pipeline, Run, WaitForSignal
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
ran: list[tuple[str, str]] = []


@pytest.fixture
def line(conn: Conn) -> Pipeline[Order]:
    """A -> B -> C -> Z, and C -> Z without c, by its name."""
    line: Pipeline[Order] = Pipeline("line", data=Order, initial="A", final={"Z"})

    def work(run: Run[Order]) -> None:
        ran.append((run.stage, run.status))

    for name, on, to in (("work", "A", "B"), ("b", "B", "C"), ("c", "C", "Z")):
        line.stage(name, on=on, to=to, retry=QUICK)(work)
    line.allow("A", to="C")
    line.allow("B", to="Z")
    ran.clear()
    deploy.deploy(conn, line)
    return line


def on(conn: Conn, event: str, when: str, then: str, *, name: str = "auto") -> None:
    """Have a trigger of somebody else's, by the form of `event`: for each row, or for each statement."""
    conn.execute(
        f"CREATE FUNCTION outbox.auto_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF {when} THEN {then}; END IF; RETURN {'NEW' if event.startswith('BEFORE') else 'NULL'}; END $$; "
        f"CREATE TRIGGER {name} {event} EXECUTE FUNCTION outbox.auto_{name}()".encode()
    )


UPDATED = "AFTER UPDATE ON outbox.workflow_states FOR EACH ROW"
MOVE = "UPDATE outbox.workflow_states SET current_status = '{}' WHERE id = NEW.id"
STATEMENT = (
    "AFTER UPDATE ON outbox.workflow_states REFERENCING NEW TABLE AS moved FOR EACH STATEMENT",
    "EXISTS (SELECT FROM moved WHERE current_status = 'B')",
    "UPDATE outbox.workflow_states SET current_status = 'C' WHERE id IN (SELECT id FROM moved WHERE current_status = 'B')",
)


def history(conn: Conn) -> list[Any]:
    return conn.execute(
        "SELECT from_status, to_status, stage, attempt FROM outbox.state_changes ORDER BY workflow_id, version"
    ).fetchall()


def counts(conn: Conn) -> dict[str, int]:
    rows = conn.execute(
        "SELECT status, sum(workflows)::int FROM outbox.status_counts GROUP BY 1 HAVING sum(workflows) <> 0"
    )
    return dict(rows.fetchall())


@pytest.mark.parametrize(
    "trigger", [(UPDATED, "NEW.current_status = 'B'", MOVE.format("C")), STATEMENT], ids=["row", "statement"]
)
def test_what_a_trigger_moves_on_goes_on_from_where_it_is(
    conn: Conn, dsn: str, line: Pipeline[Order], trigger: Any
) -> None:
    on(conn, *trigger)
    line.submit_many(conn, [("a", Order()), ("b", Order())])
    drain_all(conn, dsn, line)
    assert sorted(ran) == [("c", "C"), ("c", "C"), ("work", "A"), ("work", "A")]
    assert history(conn) == [
        (None, "A", None, None), ("A", "B", "work", 1), ("B", "C", None, None), ("C", "Z", "c", 1),
    ] * 2  # fmt: skip
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
    assert counts(conn) == {"Z": 2}


def test_what_a_trigger_moves_on_to_the_end_gets_no_job(conn: Conn, dsn: str, line: Pipeline[Order]) -> None:
    on(conn, UPDATED, "NEW.current_status = 'B'", MOVE.format("Z"))
    line.submit(conn, "a", Order())
    drain_all(conn, dsn, line)
    assert ran == [("work", "A")]
    assert history(conn)[1:] == [("A", "B", "work", 1), ("B", "Z", None, None)]
    assert (value(conn, "SELECT count(*) FROM outbox.jobs"), counts(conn)) == (0, {"Z": 1})


def test_what_a_trigger_moves_on_at_its_start_has_the_job_of_where_it_is(
    conn: Conn, dsn: str, line: Pipeline[Order]
) -> None:
    on(conn, "AFTER INSERT ON outbox.workflow_states FOR EACH ROW", "true", MOVE.format("C"))
    line.submit_many(conn, [("a", Order()), ("b", Order())])
    assert conn.execute("SELECT stage, status, entered FROM outbox.jobs").fetchall() == [("c", "C", 2)] * 2
    drain_all(conn, dsn, line)
    assert history(conn)[:3] == [(None, "A", None, None), ("A", "C", None, None), ("C", "Z", "c", 1)]
    assert (ran, counts(conn)) == ([("c", "C")] * 2, {"Z": 2})


def test_what_a_trigger_deletes_leaves_nothing_to_do(conn: Conn, dsn: str, line: Pipeline[Order]) -> None:
    on(conn, UPDATED, "NEW.current_status = 'B'", "DELETE FROM outbox.workflow_states WHERE id = NEW.id")
    line.submit(conn, "a", Order())
    drain_all(conn, dsn, line)
    assert (ran, value(conn, "SELECT count(*) FROM outbox.jobs"), counts(conn)) == ([("work", "A")], 0, {})


def test_a_status_that_a_trigger_changes_on_the_way_is_the_one_that_counts(
    conn: Conn, dsn: str, line: Pipeline[Order]
) -> None:
    on(
        conn,
        "BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW",
        "NEW.current_status = 'B'",
        "NEW.current_status := 'C'",
    )
    line.submit(conn, "a", Order())
    drain_all(conn, dsn, line)
    assert history(conn)[1:] == [("A", "C", "work", 1), ("C", "Z", "c", 1)]


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("how", ["NEW.current_status := OLD.current_status", "RETURN NULL"])
def test_a_trigger_that_keeps_a_workflow_where_it_is_makes_the_job_fail_with_that_reason(
    conn: Conn, dsn: str, how: str, transaction: bool
) -> None:
    line: Pipeline[Order] = Pipeline("line", data=Order, initial="A", final={"Z"})
    line.stage("work", on="A", to="Z", retry=QUICK, transaction=transaction)(lambda run: run.publish("done", 1))
    deploy.deploy(conn, line)
    on(conn, "BEFORE UPDATE ON outbox.workflow_states FOR EACH ROW", "NEW.entity_id = 'kept'", how)
    line.submit_many(conn, [("kept", Order()), ("free", Order())])
    drain_all(conn, dsn, line)
    assert (status_of(conn, "kept"), status_of(conn, "free")) == ("A", "Z")
    assert conn.execute("SELECT entity_id, attempts, error ~ 'a trigger' FROM outbox.dead_jobs").fetchall() == [
        ("kept", 4, True)
    ]
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
    assert conn.execute("SELECT key FROM outbox.messages").fetchall() == [("free",)]


def test_the_wait_of_a_handler_begins_though_a_trigger_changes_something_else(conn: Conn, dsn: str) -> None:
    other: Pipeline[Order] = Pipeline("other", data=Order, initial="ON", final={"OFF"})
    other.allow("ON", to="OFF")
    deploy.deploy(conn, other)
    other.submit(conn, "o", Order())
    on(
        conn,
        UPDATED,
        "NEW.current_status = 'WAITING'",
        "UPDATE outbox.workflow_states SET current_status = 'OFF' WHERE entity_id = 'o'",
    )
    pipeline = waiting(conn, dsn, PAYMENT)
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 1
    assert value(conn, "SELECT on_deadline FROM outbox.jobs") == "LATE"
    conn.execute("INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('orders', 'a', 'payment')")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_a_wait_that_a_trigger_has_ended_before_it_began_does_not_begin(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"SENT", "LATE"})
    pipeline.stage("ask", on="NEW", to="WAITING")(lambda run: WaitForSignal("go", to="SENT", into="payment"))
    pipeline.stage("send", on="PAID", to="CHECKED")(lambda run: None)
    pipeline.allow("WAITING", to={"PAID", "SENT", "LATE"})
    pipeline.allow("CHECKED", to={"SENT"})
    deploy.deploy(conn, pipeline)
    on(conn, UPDATED, "NEW.current_status = 'WAITING'", MOVE.format("PAID"))
    pipeline.submit(conn, "a", Order())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "CHECKED"
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 0


def test_a_decision_is_kept_though_a_trigger_moves_the_workflow_on(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    on(conn, UPDATED, "NEW.current_status = 'PAID'", MOVE.format("SENT"))
    assert value(conn, "SELECT outbox.decide('orders', 'a', 'approve', 'sarah')") == "PAID"
    assert conn.execute("SELECT ended, decision, to_status, decided_by FROM outbox.approvals").fetchall() == [
        ("decided", "approve", "PAID", "sarah")
    ]
    drain(pipeline, dsn)
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING", "PAID", "SENT"]
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_a_stage_that_leads_to_its_own_status_is_refused() -> None:
    line: Pipeline[Order] = Pipeline("line", data=Order, initial="A", final={"Z"})
    with pytest.raises(Exception, match="itself"):
        line.stage("work", on="A", to={"A", "Z"})(lambda run: Go("A"))
