"""Approvals: a question to a person is a row, its decision is one commit, and exactly one wins."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value
from kit.waits import HOUR, QUESTION, TIMED, Order, orders, put_off, trail, waiting
from outbox import (
    DataChanged,
    InvalidInput,
    NoSuchOption,
    NothingAsked,
    NoWorkflow,
    Refused,
    Run,
    TooLate,
    WaitForApproval,
    WaitForSignal,
    approve,
    decide,
    reject,
    signal,
)

Conn = psycopg.Connection[Any]


def test_an_approval_is_a_row_and_its_decision_one_commit(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    asked = conn.execute(
        "SELECT question, options, assignee, status, version, ended, deadline - asked_at FROM outbox.approvals"
    ).fetchone()
    assert asked == ("Pay it?", {"approve": "PAID", "reject": "REFUSED"}, "sarah", "WAITING", 2, None, HOUR)
    with conn.transaction():
        assert approve(conn, pipeline, "a", by="sarah", reason="it is right") == "PAID"
    assert trail(conn)[-1] == ("PAID", "sarah", "it is right")
    ended = "SELECT ended, decision, decided_by, reason, to_status, ended_at = now() FROM outbox.approvals"
    assert conn.execute(ended).fetchone()[:5] == ("decided", "approve", "sarah", "it is right", "PAID")  # type: ignore[index]
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_the_first_decision_wins_and_the_others_are_told(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    assert reject(conn, pipeline, "a", by="tom") == "REFUSED"
    with pytest.raises(TooLate, match="too late, it was decided: reject by tom at 20") as refused:
        approve(conn, "orders", "a", by="sarah")
    assert refused.value.sqlstate == "OB013"
    assert reject(conn, pipeline, "a", by="tom") == "REFUSED", "the same once more, as a network repeats it"
    assert len(trail(conn)) == 3


@pytest.mark.parametrize(
    ("entity", "decision", "error", "state", "words"),
    [
        ("nobody", "approve", NoWorkflow, "OB011", 'no workflow of entity "nobody" in pipeline "orders"'),
        ("b", "approve", NothingAsked, "OB012", "nothing is asked, it is in NEW"),
        ("a", "maybe", NoSuchOption, "OB014", '"maybe" is not an option of "Pay it?"'),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(
    conn: Conn, dsn: str, entity: str, decision: str, error: type[Refused], state: str, words: str
) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    pipeline.submit(conn, "b", Order())
    with pytest.raises(error) as refused:
        decide(conn, pipeline, entity, decision, by="sarah")
    assert (refused.value.sqlstate, words in str(refused.value)) == (state, True), refused.value
    assert status_of(conn, "a") == "WAITING"


@pytest.mark.parametrize(
    ("field", "how"),
    [
        ("pipeline", {"pipeline": None}),
        ("pipeline", {"pipeline": ""}),
        ("decision", {"decision": None}),
        ("decision", {"decision": ["approve"]}),
        ("shown", {"shown": 5}),
        ("shown", {"shown": "a\0"}),
        ("shown", {"shown": ""}),
        ("by", {"by": 5}),
        ("question", {"question": "first"}),
        ("groups", {"groups": "finance"}),
    ],
)
def test_a_value_of_a_decision_that_cannot_be_stored_is_refused_before_any_sql(
    conn: Conn, field: str, how: dict[str, Any]
) -> None:
    value_of: dict[str, Any] = {"pipeline": "orders", "decision": "approve", **how}
    with conn.transaction(), pytest.raises(InvalidInput) as refused:
        decide(conn, value_of.pop("pipeline"), "a", value_of.pop("decision"), **value_of)
    assert refused.value.field == field
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_decision_on_data_that_has_changed_is_refused(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"total": 6}' WHERE entity_id = 'a'""")
    with pytest.raises(DataChanged, match="changed since it was shown") as refused:
        approve(conn, pipeline, "a", by="sarah")
    assert refused.value.sqlstate == "OB015"
    seen = value(conn, "SELECT outbox.shown(metadata) FROM outbox.workflow_states")
    assert approve(conn, pipeline, "a", by="sarah", shown=seen) == "PAID"


def test_an_edit_is_validated_and_becomes_the_data(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    with pytest.raises(InvalidInput, match="total"):
        approve(conn, pipeline, "a", edit={"total": "many"})
    with pytest.raises(InvalidInput, match="give the Pipeline"):
        approve(conn, "orders", "a", edit={"total": 7})
    assert approve(conn, pipeline, "a", by="sarah", edit={"total": 7}) == "PAID"
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == 7
    assert value(conn, "SELECT edited -> 'total' FROM outbox.approvals") == 7


@pytest.mark.parametrize("first", [None, {"total": 7}], ids=["as it was", "with an edit"])
def test_the_same_option_with_another_edit_is_another_answer(conn: Conn, dsn: str, first: Any) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="sarah", edit=first) == "PAID"
    with pytest.raises(TooLate):
        approve(conn, pipeline, "a", by="sarah", edit={"total": 8})
    with pytest.raises(TooLate):
        approve(conn, pipeline, "a", by="sarah", about={"total": 7, "of": "another"})
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == (7 if first else 5)


def test_on_an_async_connection_a_refusal_is_the_same_error(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)

    async def decide_twice() -> str:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            status = await approve(other, pipeline, "a", by="sarah", reason="right")
            with pytest.raises(TooLate, match="too late, it was decided: approve by sarah"):
                await reject(other, pipeline, "a", by="tom")
            with pytest.raises(NoWorkflow):
                await decide(other, pipeline, "b", "approve")
            return status

    assert asyncio.run(decide_twice()) == "PAID"


def test_a_status_set_by_hand_is_a_decision(conn: Conn, dsn: str) -> None:
    """The tables are the API: psql, Django, a person in a web page."""
    waiting(conn, dsn, QUESTION)
    conn.execute("SELECT set_config('outbox.actor', 'django', false)")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'REFUSED'")
    answer = conn.execute("SELECT ended, decision, decided_by FROM outbox.approvals").fetchone()
    assert answer == ("decided", "reject", "django")


def test_a_change_to_what_is_no_option_withdraws_the_question(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'LATE'")
    assert value(conn, "SELECT ended || ' ' || to_status FROM outbox.approvals") == "withdrawn LATE"
    with pytest.raises(TooLate, match="too late, the question was withdrawn: moved to LATE by"):
        approve(conn, pipeline, "a")


def test_after_the_deadline_nobody_decides(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert trail(conn)[-1] == ("LATE", "outbox", "deadline")
    assert conn.execute("SELECT ended, decision FROM outbox.approvals").fetchone() == ("deadline", None)
    with pytest.raises(TooLate, match="too late, the deadline has passed: moved to LATE by outbox at 20"):
        approve(conn, pipeline, "a", by="sarah")


def test_reminders_are_messages_until_it_is_decided(conn: Conn, dsn: str) -> None:
    asked = WaitForApproval("Pay it?", options={"approve": "PAID"}, assignee="sarah", remind_every=HOUR)
    pipeline = waiting(conn, dsn, asked)
    for _ in range(2):
        put_off(conn, 3601)
        drain(pipeline, dsn)
    sent = conn.execute(
        "SELECT topic, key, payload -> 'reminder', payload ->> 'assignee' FROM outbox.messages"
    ).fetchall()
    assert sent == [("orders.approval.reminder", "a", n, "sarah") for n in (1, 2)]
    approve(conn, pipeline, "a")
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.messages") == 2


def test_a_decision_after_the_deadline_wins_if_no_worker_has_carried_the_deadline_out(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    put_off(conn, 3602)
    assert approve(conn, pipeline, "a", by="sarah") == "PAID"
    drain(pipeline, dsn)
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING", "PAID", "SENT"]
    assert conn.execute("SELECT ended, decided_by FROM outbox.approvals").fetchone() == ("decided", "sarah")


def test_which_of_two_options_a_plain_update_means_is_not_made_up(conn: Conn, dsn: str) -> None:
    options = {"at once": "PAID", "in part": "PAID", "never": "REFUSED"}
    pipeline = waiting(conn, dsn, WaitForApproval("Pay it?", options=options))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'PAID'")
    answer = conn.execute("SELECT ended, decision, to_status FROM outbox.approvals").fetchone()
    assert answer == ("decided", None, "PAID")
    with pytest.raises(TooLate, match="too late, it was decided: moved to PAID by") as refused:
        decide(conn, pipeline, "a", "at once", by="sarah")
    assert refused.value.decision is None


def test_a_named_option_is_recorded_also_if_another_one_leads_there(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, WaitForApproval("Pay it?", options={"at once": "PAID", "in part": "PAID"}))
    assert decide(conn, pipeline, "a", "in part", by="sarah") == "PAID"
    assert value(conn, "SELECT decision FROM outbox.approvals") == "in part"


def test_a_decision_does_not_colour_what_else_the_transaction_changes(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    pipeline.submit(conn, "b", Order())
    drain(pipeline, dsn)
    with conn.transaction():
        conn.execute("SELECT set_config('outbox.actor', 'batch', true), set_config('outbox.reason', 'night', true)")
        approve(conn, pipeline, "a", by="sarah", reason="right")
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'LATE' WHERE entity_id = 'b'")
    assert (trail(conn)[-1], trail(conn, "b")[-1]) == (("PAID", "sarah", "right"), ("LATE", "batch", "night"))


@pytest.mark.parametrize("transaction", [False, True])
def test_many_wait_in_one_batch_each_for_its_own(conn: Conn, dsn: str, transaction: bool) -> None:
    def outcome(run: Run[Order]) -> Any:
        if run.data.total % 2:
            return WaitForSignal(f"paid-{run.entity_id}", to="PAID", into="payment", timeout=HOUR, on_timeout="LATE")
        return WaitForApproval(
            f"Pay {run.entity_id}?", options={"approve": "PAID"}, data=Order(total=run.data.total * 10)
        )

    pipeline = deployed(conn, orders(outcome, transaction=transaction))
    pipeline.submit_many(conn, [(f"e{n}", Order(total=n)) for n in range(20)])
    drain(pipeline, dsn)
    questions = conn.execute("SELECT entity_id, question FROM outbox.approvals ORDER BY 1").fetchall()
    assert sorted(questions) == sorted((f"e{n}", f"Pay e{n}?") for n in range(0, 20, 2))
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 10
    assert value(conn, "SELECT (metadata ->> 'total')::int FROM outbox.workflow_states WHERE entity_id = 'e4'") == 40
    for n in range(20):
        if n % 2:
            assert signal(conn, pipeline, f"e{n}", f"paid-e{n}", {"n": n}).taken
        else:
            approve(conn, pipeline, f"e{n}")
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'SENT'") == 20
    assert value(conn, "SELECT count(*) FROM outbox.waits") + value(conn, "SELECT count(*) FROM outbox.jobs") == 0
