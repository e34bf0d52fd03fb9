"""Several questions of one workflow: each is answered by itself, and the last answer moves the workflow."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import deployed, drain, drain_all, status_of, value
from kit.waits import HOUR, Order, orders, put_off, trail, waiting
from outbox import (
    DataChanged,
    EditRefused,
    InvalidInput,
    NothingAsked,
    Pipeline,
    Question,
    Run,
    SeveralAsked,
    TooLate,
    WaitForApproval,
    approve,
    decide,
    reject,
)

Conn = psycopg.Connection[Any]
OPTIONS = {"approve": "PAID", "reject": "REFUSED"}
ENDED = "SELECT name, ended, decision, decided_by, to_status FROM outbox.approvals ORDER BY name"


def questions(*names: str, **wait: Any) -> WaitForApproval[Order]:
    asked = [Question(f"Is it fine for {name}?", options=OPTIONS, name=name) for name in names]
    return WaitForApproval(questions=asked, **wait)


def ids(conn: Conn) -> dict[str, UUID]:
    return dict(conn.execute("SELECT name, id FROM outbox.approvals ORDER BY asked_at").fetchall())


def test_the_last_of_several_answers_moves_the_workflow(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money"))
    asked = ids(conn)
    assert approve(conn, pipeline, "a", by="lea", question=asked["law"], reason="legal") == "WAITING"
    assert [status for status, *_ in trail(conn)] == ["NEW", "WAITING"], "an answer that moves nothing is no change"
    assert approve(conn, pipeline, "a", by="max", question=str(asked["money"])) == "PAID"
    assert conn.execute(ENDED).fetchall() == [
        ("law", "decided", "approve", "lea", None),
        ("money", "decided", "approve", "max", "PAID"),
    ]
    drain(pipeline, dsn)
    assert trail(conn)[-2][:2] == ("PAID", "max")
    assert status_of(conn, "a") == "SENT"


@pytest.mark.parametrize("first", [{"reject"}, True])
def test_the_first_answer_that_the_wait_names_moves_it_at_once(conn: Conn, dsn: str, first: Any) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money", "taste", first=first))
    asked = ids(conn)
    if first is not True:
        assert approve(conn, pipeline, "a", by="lea", question=asked["law"]) == "WAITING"
    assert reject(conn, pipeline, "a", by="max", question=asked["money"]) == "REFUSED"
    ended = {name: rest for name, *rest in conn.execute(ENDED).fetchall()}
    assert ended["money"] == ["decided", "reject", "max", "REFUSED"]
    assert ended["taste"] == ["withdrawn", None, "max", "REFUSED"], "another answer has ended it"
    with pytest.raises(TooLate, match="withdrawn: moved to REFUSED by max"):
        reject(conn, pipeline, "a", by="max", question=asked["taste"])


def test_which_of_several_is_meant_has_to_be_said(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money"))
    asked = ids(conn)
    with pytest.raises(SeveralAsked, match=str(asked["money"])) as refused:
        approve(conn, pipeline, "a", by="lea")
    assert refused.value.questions == (asked["law"], asked["money"])
    approve(conn, pipeline, "a", by="lea", question=asked["law"])
    assert approve(conn, "orders", "a", by="max") == "PAID", "only one was open"


def test_an_answer_that_is_repeated_is_no_error_and_answers_no_other_question(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money"))
    asked = ids(conn)
    for _ in range(2):
        assert approve(conn, pipeline, "a", by="lea", question=asked["law"]) == "WAITING"
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL") == 1
    with pytest.raises(TooLate, match="it was decided: approve by lea"):
        approve(conn, pipeline, "a", by="max", question=asked["law"])
    with pytest.raises(TooLate, match="it was decided: approve by lea"):
        reject(conn, pipeline, "a", by="lea", question=asked["law"])
    approve(conn, pipeline, "a", by="max", question=asked["money"])
    for by, name in (("lea", "law"), ("max", "money")):
        assert approve(conn, pipeline, "a", by=by, question=asked[name]) in ("WAITING", "PAID")
    # Without an id, too: each of those who have answered repeats it.
    assert approve(conn, pipeline, "a", by="lea") == approve(conn, pipeline, "a", by="max") == "PAID"
    assert len(trail(conn)) == 3


def test_an_answer_to_the_question_before_does_not_answer_the_next_one(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})
    options = {"approve": "ASKED_ONCE"}, {"approve": "DONE"}
    pipeline.stage("one", on="NEW", to="FIRST")(lambda run: WaitForApproval("One?", options=options[0]))
    pipeline.stage("two", on="ASKED_ONCE", to="SECOND")(lambda run: WaitForApproval("Two?", options=options[1]))
    pipeline.allow("FIRST", to="ASKED_ONCE")
    pipeline.allow("SECOND", to="DONE")
    drain_ = waiting_in(conn, dsn, pipeline, "FIRST")
    first = value(conn, "SELECT id FROM outbox.approvals")
    assert approve(conn, pipeline, "a", by="lea", question=first) == "ASKED_ONCE"
    drain_()
    assert status_of(conn, "a") == "SECOND"
    assert approve(conn, pipeline, "a", by="lea", question=first) == "ASKED_ONCE", "where that answer led"
    assert status_of(conn, "a") == "SECOND"
    assert approve(conn, pipeline, "a", by="lea") == "DONE"


def waiting_in(conn: Conn, dsn: str, pipeline: Pipeline[Order], status: str) -> Any:
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == status
    return lambda: drain(pipeline, dsn)


def test_a_question_of_another_workflow_is_not_answered(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law"))
    pipeline.submit(conn, "b", Order())
    drain(pipeline, dsn)
    of_a = value(conn, "SELECT id FROM outbox.approvals WHERE entity_id = 'a'")
    for id_ in (of_a, uuid4()):
        with pytest.raises(NothingAsked, match=f"it has no question {id_}"):
            approve(conn, pipeline, "b", question=id_)
    for odd in ("law", "", 7):
        with pytest.raises(InvalidInput, match="question: is an id"):
            approve(conn, pipeline, "b", question=odd)  # type: ignore[arg-type]
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL") == 2


def test_a_change_by_hand_answers_all_that_it_fits_and_a_deadline_ends_all(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money", deadline=HOUR, on_deadline="LATE"))
    pipeline.submit(conn, "b", Order())
    drain(pipeline, dsn)
    asked = value(conn, "SELECT id FROM outbox.approvals WHERE entity_id = 'a' AND name = 'law'")
    approve(conn, pipeline, "a", by="lea", question=asked)
    conn.execute(
        "SET outbox.actor = 'max'; UPDATE outbox.workflow_states SET current_status = 'REFUSED' WHERE entity_id = 'a'"
    )
    put_off(conn, 3601)
    drain(pipeline, dsn)
    answers = "SELECT ended, decision, decided_by FROM outbox.approvals WHERE entity_id = %s ORDER BY name"
    assert conn.execute(answers, ["a"]).fetchall() == [("decided", "approve", "lea"), ("decided", "reject", "max")]
    assert conn.execute(answers, ["b"]).fetchall() == [("deadline", None, "outbox")] * 2


def test_a_question_knows_who_asks_and_what_was_shown(conn: Conn, dsn: str) -> None:
    wait = WaitForApproval(
        questions=[
            Question("Refund?", options=OPTIONS, about={"tool": "refund", "sum": 900}, name="call_1"),
            Question("Pay it?", options=OPTIONS, asked_by="ann", edits_allowed=False, name="call_2"),
        ]
    )
    conn.execute("SET outbox.actor = 'ben'")
    waiting(conn, dsn, wait)
    rows = conn.execute(
        "SELECT data, own_data, shown = outbox.shown(data), edits_allowed, asked_by, stage, worker ~ '^worker-' "
        "FROM outbox.approvals ORDER BY name"
    ).fetchall()
    assert rows == [
        ({"tool": "refund", "sum": 900}, True, True, True, "ben", "ask", True),
        ({"total": 5, "payment": None}, False, True, False, "ann", "ask", True),
    ]


def test_what_a_question_is_about_is_edited_by_itself(conn: Conn, dsn: str) -> None:
    """As agents ask: may these tools be called, with these arguments?"""
    calls = {f"call_{n}": {"tool": "refund", "sum": n} for n in (1, 2)}
    asked = [
        Question("May I?", options={"yes": "PAID", "no": "PAID"}, about=about, name=name)
        for name, about in calls.items()
    ]
    pipeline = waiting(conn, dsn, WaitForApproval(questions=asked))
    one, two = ids(conn).values()
    with pytest.raises(EditRefused, match="about data of its own"):
        decide(conn, pipeline, "a", "yes", question=one, edit={"total": 6})
    assert decide(conn, "orders", "a", "yes", question=one, by="lea", about={"tool": "refund", "sum": 0}) == "WAITING"
    assert decide(conn, "orders", "a", "no", question=two, by="lea") == "PAID", "the other one is not about that"
    edits = conn.execute("SELECT name, decision, edited FROM outbox.approvals ORDER BY 1").fetchall()
    assert edits == [("call_1", "yes", {"tool": "refund", "sum": 0}), ("call_2", "no", None)]
    assert value(conn, "SELECT metadata ->> 'total' FROM outbox.workflow_states") == "5"


def test_an_edit_must_be_allowed_and_makes_others_look_again(conn: Conn, dsn: str) -> None:
    asked = [
        Question(f"{name}?", options=OPTIONS, edits_allowed=name != "law", name=name)
        for name in ("law", "money", "taste")
    ]
    pipeline = waiting(conn, dsn, WaitForApproval(questions=asked))
    by_name = ids(conn)
    with pytest.raises(EditRefused, match="without an edit") as refused:
        approve(conn, pipeline, "a", question=by_name["law"], edit={"total": 6})
    assert refused.value.question == by_name["law"]
    with pytest.raises(EditRefused, match="has none of its own"):
        approve(conn, pipeline, "a", question=by_name["money"], about=7)
    assert approve(conn, pipeline, "a", question=by_name["money"], edit={"total": 6}) == "WAITING"
    assert value(conn, "SELECT metadata ->> 'total' FROM outbox.workflow_states") == "6"
    with pytest.raises(DataChanged) as changed:
        approve(conn, pipeline, "a", question=by_name["law"])
    assert approve(conn, pipeline, "a", question=by_name["law"], shown=changed.value.shown) == "WAITING"


def test_questions_wait_for_their_own_assignees_and_are_reminded_of(conn: Conn, dsn: str) -> None:
    asked = [
        Question(
            "Law?", options=OPTIONS, assignee="lea", remind_every=HOUR, escalate_after=HOUR * 2, escalate_to="boss"
        ),
        Question("Money?", options=OPTIONS, assignee="max"),
    ]
    pipeline = waiting(conn, dsn, WaitForApproval(questions=asked))
    for _ in range(3):
        put_off(conn, 3601)
        conn.execute("UPDATE outbox.approvals SET escalate_at = escalate_at - interval '3601 seconds'")
        drain(pipeline, dsn)
    sent = conn.execute(
        "SELECT split_part(topic, '.', 3), payload ->> 'assignee', payload ->> 'before' FROM outbox.messages ORDER BY id"
    ).fetchall()
    remind = ("reminder", "lea", None)
    assert sent == [remind, ("escalated", "boss", "lea"), ("reminder", "boss", None), ("reminder", "boss", None)]
    assert conn.execute("SELECT assignee, escalated_at IS NULL FROM outbox.approvals ORDER BY question").fetchall() == [
        ("boss", False), ("max", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: WaitForApproval(),
        lambda: WaitForApproval("?", questions=[Question("!")]),
        lambda: WaitForApproval(questions=[Question("!")], assignee="lea"),
        lambda: WaitForApproval(questions=["!"]),  # type: ignore[list-item]
        lambda: WaitForApproval(questions=[Question("!")] * 101),
        lambda: WaitForApproval(questions=[Question("!", name="a"), Question("?", name="a")]),
        lambda: WaitForApproval("?", first={"perhaps"}),
        lambda: WaitForApproval("?", first="approve"),
        lambda: Question("?", name=str(uuid4())),
        lambda: Question("?", about={1, 2}),
        lambda: Question("?", approvers={}),
        lambda: Question("?", approvers={"law": 0}),
        lambda: Question("?", approvers={"law": True}),
        lambda: Question("?", approvers={str(n): 1 for n in range(9)}),
        lambda: Question("?", alone={"reject"}),
        lambda: Question("?", approvers={"law": 1}, alone={"perhaps"}),
        lambda: Question("?", escalate_after=HOUR),
        lambda: Question("?", escalate_to="boss"),
        lambda: Question("?", asked_by=""),
    ],
)
def test_what_can_not_be_asked_is_refused_at_once(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


def test_every_question_may_only_lead_where_the_pipeline_allows(conn: Conn, dsn: str) -> None:
    def ask(run: Run[Order]) -> WaitForApproval[Order]:
        return WaitForApproval(questions=[Question("?", options=OPTIONS), Question("!", options={"yes": "NOWHERE"})])

    pipeline = deployed(conn, orders(ask))
    pipeline.submit(conn, "a", Order())
    drain_all(conn, dsn, pipeline)
    assert "'NOWHERE', which is not a legal change" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_on_an_async_connection_it_is_the_same(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, questions("law", "money"))

    async def answer() -> list[str]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
            with pytest.raises(SeveralAsked):
                await approve(other, pipeline, "a")
            return [await approve(other, pipeline, "a", question=id_) for id_ in ids(conn).values()]

    assert asyncio.run(answer()) == ["WAITING", "PAID"]


def test_the_command_line_lists_the_questions_and_answers_one(conn: Conn, dsn: str, outbox: Outbox) -> None:
    waiting(conn, dsn, questions("law", "money"))
    listed = outbox("approvals", "--json").json
    assert [row["name"] for row in listed] == ["law", "money"]
    for row in listed:
        assert row["id"] in outbox("approvals").out.replace("\n", "")
        assert row["id"] in outbox.fails("approve", "a")
    said = outbox("approve", "a", "--question", listed[0]["id"], "--by", "lea").out
    assert said.startswith("a: approve by lea -> WAITING\nIt waits for a person to answer ")
    assert outbox("reject", "a", "--by", "max").out == "a: reject by max -> REFUSED\n"
    shown = outbox("show", "a", "--json").json
    assert [(row["name"], row["decided_by"]) for row in shown["approvals"]] == [("law", "lea"), ("money", "max")]


def test_with_a_workflow_its_questions_votes_and_links_are_deleted(conn: Conn, dsn: str) -> None:
    wait = WaitForApproval("?", options=OPTIONS, approvers={"law": 2})
    pipeline = waiting(conn, dsn, wait)
    approve(conn, pipeline, "a", by="lea", groups=["law"])
    conn.execute("SELECT outbox.approval_link('orders', 'a', 'max', now() + interval '1 day')")
    tables = ("approvals", "approval_votes", "approval_links")
    assert [value(conn, f"SELECT count(*) FROM outbox.{table}") for table in tables] == [1, 1, 1]
    conn.execute("DELETE FROM outbox.workflow_states")
    assert [value(conn, f"SELECT count(*) FROM outbox.{table}") for table in tables] == [0, 0, 0]


def test_what_a_worker_of_the_release_before_asks_is_one_question(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, orders(None))
    id_ = str(pipeline.submit(conn, "a", Order()).id)
    told = {"id": id_, "version": 2, "question": "Pay it?", "options": OPTIONS, "assignee": "lea", "within": 3600,
            "on_deadline": "LATE", "remind": 60}  # fmt: skip
    with conn.transaction():
        conn.execute("SELECT set_config('outbox.waits', %s, true)", [json.dumps([told])])
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'WAITING'")
    asked = "SELECT question, assignee, remind_every, deadline > now(), edits_allowed, approvers FROM outbox.approvals"
    assert conn.execute(asked).fetchall() == [("Pay it?", "lea", HOUR / 60, True, True, None)]
    assert conn.execute("SELECT outbox.decide('orders', 'a', 'approve', 'lea', NULL, NULL, NULL)").fetchone() == (
        "PAID",
    )
