"""What a workflow waits for: a time, a person, a signal. A wait is a status, and what ends it changes the status."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pipelines import QUICK, deployed, drain, status_of, value
from pydantic import BaseModel

from outbox import (
    DefinitionError,
    Go,
    InvalidInput,
    Pipeline,
    Run,
    WaitForApproval,
    WaitForSignal,
    approve,
    decide,
    reject,
    signal,
)

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)


class Order(BaseModel):
    total: int = 0
    payment: dict[str, Any] | None = None


def orders(outcome: Any, **options: Any) -> Pipeline[Order]:
    """NEW -> WAITING, which the stage returns `outcome` for; from there to PAID, REFUSED or LATE; PAID -> SENT."""
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
    """Deploy, submit "a", and run it until it waits."""
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
    """Let so much time pass for what waits."""
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
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "PAID"
    assert value(conn, "SELECT run_at - now() BETWEEN '59 min' AND '61 min' AND NOT due FROM outbox.jobs")
    assert value(conn, "SELECT scheduled FROM outbox.overview WHERE status = 'PAID'") == 1
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_a_deadline_moves_what_stands_in_a_status(conn: Conn, dsn: str) -> None:
    pipeline = orders(None)
    pipeline.deadline("WAITING", hours=1, to="LATE")
    deployed(conn, pipeline).submit(conn, "a", Order())
    pipeline.submit(conn, "b", Order())
    drain(pipeline, dsn)
    jobs = "SELECT stage, on_deadline, deadline - now() BETWEEN '59 min' AND '61 min' FROM outbox.jobs"
    assert conn.execute(jobs).fetchall() == [(None, "LATE", True)] * 2
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


# A person.


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
    with pytest.raises(psycopg.Error, match="too late, it was decided: reject by tom at 20") as refused:
        approve(conn, "orders", "a", by="sarah")
    assert refused.value.sqlstate == "OB013"
    assert reject(conn, pipeline, "a", by="tom") == "REFUSED", "the same once more, as a network repeats it"
    assert len(trail(conn)) == 3


@pytest.mark.parametrize(
    ("entity", "decision", "state", "words"),
    [
        ("nobody", "approve", "OB011", 'no workflow of entity "nobody" in pipeline "orders"'),
        ("b", "approve", "OB012", "nothing is asked, it is in NEW"),
        ("a", "maybe", "OB014", '"maybe" is no option of "Pay it?"'),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(
    conn: Conn, dsn: str, entity: str, decision: str, state: str, words: str
) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    pipeline.submit(conn, "b", Order())
    with pytest.raises(psycopg.Error) as refused:
        decide(conn, pipeline, entity, decision, by="sarah")
    assert (refused.value.sqlstate, words in str(refused.value)) == (state, True), refused.value
    assert status_of(conn, "a") == "WAITING"


def test_a_decision_on_data_that_has_changed_is_refused(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    conn.execute("""UPDATE outbox.workflow_states SET metadata = '{"total": 6}' WHERE entity_id = 'a'""")
    with pytest.raises(psycopg.Error, match="changed since it was shown") as refused:
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


def test_whoever_sets_the_status_has_decided(conn: Conn, dsn: str) -> None:
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
    with pytest.raises(psycopg.Error, match="too late, the question was withdrawn: moved to LATE by"):
        approve(conn, pipeline, "a")


def test_after_the_deadline_nobody_decides(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert trail(conn)[-1] == ("LATE", "outbox", "deadline")
    assert conn.execute("SELECT ended, decision FROM outbox.approvals").fetchone() == ("deadline", None)
    with pytest.raises(psycopg.Error, match="too late, the deadline has passed: moved to LATE by outbox at 20"):
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


# A signal.

PAYMENT = WaitForSignal("payment", to="PAID", into="payment", timeout=HOUR, on_timeout="LATE")


def test_a_signal_moves_who_waits_for_it(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    sent = signal(conn, pipeline, "a", "payment", {"sum": 5}, id="p1")
    assert (sent.status, sent.created, sent.taken) == ("PAID", True, True)
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {"total": 5, "payment": {"sum": 5}}
    assert trail(conn)[-1][2] == "signal payment"
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"


def test_a_signal_before_the_wait_is_kept_and_taken(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(PAYMENT))
    pipeline.submit(conn, "a", Order())
    assert signal(conn, pipeline, "a", "payment", {"sum": 5}).taken is False
    assert signal(conn, pipeline, "a", "other").taken is False
    drain(pipeline, dsn)
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING", "PAID", "SENT"]
    assert conn.execute("SELECT name, taken_at IS NOT NULL FROM outbox.signals ORDER BY id").fetchall() == [
        ("payment", True),
        ("other", False),
    ]
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_the_same_id_twice_is_one_signal_and_none_is_taken_twice(conn: Conn, dsn: str) -> None:
    def again(run: Run[Order]) -> WaitForSignal[Order]:
        return WaitForSignal("payment", to="NEW")

    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW")
    pipeline.stage("ask", on="NEW", to="WAITING")(again)
    pipeline.allow("WAITING", to="NEW")
    deployed(conn, pipeline).submit(conn, "a", Order())
    assert [signal(conn, "orders", "a", "payment", id=id).created for id in ("p1", "p1", "p2", None)] == [
        True,
        False,
        True,
        True,
    ]
    drain(pipeline, dsn)
    assert value(conn, "SELECT count(*) FROM outbox.signals WHERE taken_at IS NOT NULL") == 3
    assert [status for status, *_ in trail(conn)] == ["NEW"] + ["WAITING", "NEW"] * 3 + ["WAITING"]


def test_a_plain_insert_is_a_signal(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, PAYMENT)
    insert = "INSERT INTO outbox.signals (pipeline, entity_id, name, payload) VALUES ('orders', %s, 'payment', '1')"
    conn.execute(insert, ("a",))
    assert status_of(conn, "a") == "PAID"
    with pytest.raises(psycopg.Error, match='no workflow of entity "b"') as refused:
        conn.execute(insert, ("b",))
    assert refused.value.sqlstate == "OB011"


def test_a_signal_that_never_comes_times_out(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    put_off(conn, 3601)
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "LATE"
    late = signal(conn, pipeline, "a", "payment")
    assert (late.status, late.taken) == ("LATE", False)
    assert value(conn, "SELECT count(*) FROM outbox.waits") == 0


def test_a_signal_rolled_back_never_was(conn: Conn, connect: Callable[..., Conn], dsn: str) -> None:
    pipeline = waiting(conn, dsn, PAYMENT)
    other = connect(autocommit=False)
    signal(other, pipeline, "a", "payment")
    other.rollback()
    assert status_of(conn, "a") == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.signals") == 0


# What handlers may return, and pipelines say.


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (WaitForApproval("?", options={"yes": "NOWHERE"}), "which is no legal change"),
        (WaitForSignal("s", to="SENT"), "which is no legal change"),
        (WaitForSignal("s", to="PAID", status="PAID"), "may not go to 'PAID'"),
        (Go("WAITING", after=HOUR), "no stage takes it"),
    ],
)
def test_a_wait_that_can_not_end_is_a_defect_of_the_handler(conn: Conn, dsn: str, outcome: Any, words: str) -> None:
    pipeline = deployed(conn, orders(outcome))
    pipeline.submit(conn, "a", Order())
    deadline = time.monotonic() + 20
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


def test_what_is_waited_for_is_gone_with_its_workflow(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, TIMED)
    signal(conn, pipeline, "a", "payment")
    conn.execute("DELETE FROM outbox.workflow_states")
    left = [value(conn, f"SELECT count(*) FROM outbox.{table}") for table in ("jobs", "approvals", "signals", "waits")]
    assert left == [0, 0, 0, 0]
