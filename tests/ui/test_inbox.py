"""Approvals on the page: what is shown is what is decided, one wins, edits keep their types, links decide by POST only."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from kit.browsing import Page, Visitor, visitor
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import wait_for
from kit.waits import QUESTION, Order, orders, waiting
from outbox import Pipeline, Question, Run, WaitForApproval, approval_link, approve, delegate, signal
from outbox.ui import Person, dashboard
from outbox.ui.pages import inbox

Conn = psycopg.Connection[Any]
LAST = "SELECT a.decision, a.decided_by, a.login, a.reason FROM outbox.approvals AS a ORDER BY a.ended_at DESC NULLS LAST LIMIT 1"


def opened(visit: Visitor) -> Page:
    return visit.get(visit.get("/approvals").link("/approvals/0"))


def test_the_inbox_asks_and_an_answer_has_the_name_the_login_and_the_reason(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, QUESTION)
    visit = visitor(dsn)
    page = visit.get("/approvals")
    assert "Pay it?" in page.text
    assert "1 open question" in visit.get("/").text
    done = visit.submit(page.form("/approvals/0"), "approve", reason="fine")
    assert "Your answer is kept." in done.text
    assert status_of(conn, "a") == "PAID"
    assert conn.execute(LAST).fetchone() == ("approve", "sarah", "outbox_owner", "fine")
    assert "Nothing waits" in visit.get("/approvals").text


def test_the_loser_of_a_race_is_told_by_whom_and_when(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, QUESTION)
    sarah, ben = visitor(dsn, "sarah"), visitor(dsn, "ben")
    first, second = opened(sarah).form("/approvals/0"), opened(ben).form("/approvals/0")
    sarah.submit(first, "approve")
    page = ben.submit(second, "reject")
    assert page.status == 409
    assert "Too late: sarah has decided approve, at 20" in page.text
    assert not [form for form in page.forms if form.method == "post"]
    assert "Your answer is kept." in sarah.submit(first, "approve").text, "the same answer again is no error"


def test_an_answer_is_about_what_was_shown(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, QUESTION)
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"total\": 6}'")
    page = visit.submit(form, "approve")
    assert (page.status, "has changed while you read" in page.text) == (409, True)
    assert status_of(conn, "a") == "WAITING"
    assert "Your answer is kept." in visit.submit(page.form("/approvals/0"), "approve").text


def test_an_answer_is_for_the_question_that_was_shown(conn: Conn, dsn: str) -> None:
    options = {"yes": "PAID", "no": "REFUSED"}
    several = WaitForApproval(questions=[Question("Legal?", options=options), Question("Affordable?", options=options)])
    waiting(conn, dsn, several)
    visit = visitor(dsn)
    page = visit.get("/approvals")
    second = next(form for form in page.forms if form.method == "post" and form.action.endswith(
        str(value(conn, "SELECT id FROM outbox.approvals WHERE question = 'Affordable?'"))))  # fmt: skip
    visit.submit(second, "yes")
    assert conn.execute("SELECT question FROM outbox.approvals WHERE ended IS NOT NULL").fetchall() == [
        ("Affordable?",)
    ]
    assert visit.submit(second, "yes", decision="maybe").status in (200, 409)


def test_an_edit_keeps_types_and_what_was_left_as_it_is(conn: Conn, dsn: str) -> None:
    class Item(BaseModel):
        name: str

    class Cart(BaseModel):
        total: int
        price: float
        note: str
        paid: bool
        items: list[Item] = []
        left: int | None = None

    pipeline: Pipeline[Any] = Pipeline("orders", data=Cart, initial="NEW", final={"PAID", "REFUSED"})
    pipeline.stage("ask", on="NEW", to="WAITING")(lambda run: QUESTION)
    pipeline.allow("WAITING", to={"PAID", "REFUSED"})
    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Cart(total=5, price=1.5, note="42", paid=False, items=[Item(name="x")]))
    drain(pipeline, dsn)
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    assert form.fields["field.total"] == "5"
    refused = visit.submit(form, "approve", **{"field.total": "seven", "field.note": "keep <this>"})
    assert (refused.status, "total" in refused.text) == (400, True)
    kept = refused.form("/approvals/0")
    assert kept.fields["field.note"] == "keep <this>", "what was typed is not lost"
    visit.submit(kept, "approve", **{"field.total": "12345678901234567890", "field.paid": "true", "field.note": "43"})
    assert value(conn, "SELECT metadata FROM outbox.workflow_states") == {
        "total": 12345678901234567890, "price": 1.5, "note": "43", "paid": True, "items": [{"name": "x"}], "left": None,
    }  # fmt: skip


def test_an_edit_of_one_field_keeps_each_digit_and_line_break_of_the_others(conn: Conn, dsn: str) -> None:
    class Note(BaseModel):
        total: int
        note: str

    pipeline: Pipeline[Any] = Pipeline("orders", data=Note, initial="NEW", final={"PAID", "REFUSED"})
    pipeline.stage("ask", on="NEW", to="WAITING")(lambda run: QUESTION)
    pipeline.allow("WAITING", to={"PAID", "REFUSED"})
    deployed(conn, pipeline)
    pipeline.submit(conn, "a", Note(total=5, note="one\r\ntwo\rthree"))
    drain(pipeline, dsn)
    number = '{"price": 12345678901234567890.123456789}'
    conn.execute("UPDATE outbox.workflow_states SET metadata = metadata || %s", (number,))
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    form.fields["field.note"] = "one\r\ntwo\r\nthree"  # as a browser sends it
    visit.submit(form, "approve", **{"field.total": "6"})
    assert conn.execute(
        "SELECT metadata ->> 'total', metadata ->> 'note', metadata ->> 'price' FROM outbox.workflow_states"
    ).fetchone() == ("6", "one\r\ntwo\rthree", "12345678901234567890.123456789")


@pytest.mark.parametrize("known", [True, False])
def test_an_edit_that_does_not_fit_is_refused_by_the_model_or_the_database(conn: Conn, dsn: str, known: bool) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    visit = visitor(dsn, pipelines=[pipeline] if known else [])
    page = visit.submit(opened(visit).form("/approvals/0"), "approve", **{"field.payment": "[1]"})
    if known:
        assert (page.status, "payment" in page.text) == (400, True)
        assert status_of(conn, "a") == "WAITING"
    else:
        assert "Your answer is kept." in page.text, "as in plain SQL: docs/approvals.md"


def test_data_without_a_schema_is_edited_as_json(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, WaitForApproval("Call?", options=QUESTION.options, about=[1, {"x": "</textarea><script>"}]))
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    assert json.loads(form.fields["field.edit"]) == [1, {"x": "</textarea><script>"}]
    for broken in ("{", "", '{"a": 1, "a": 2}', "1e400"):
        assert visit.submit(form, "approve", **{"field.edit": broken}).status == 400, broken
    visit.submit(form, "approve", **{"field.edit": "[2]"})
    assert value(conn, "SELECT edited FROM outbox.approvals") == [2]


def test_what_has_become_of_an_effect_is_answered_and_shown(conn: Conn, dsn: str) -> None:
    calls: list[str] = []

    async def charge() -> str:
        calls.append("charge")
        raise TimeoutError("the bank is silent")

    async def pay(run: Run[Order]) -> None:
        assert await run.effect("charge", charge) == "receipt 7"

    pipeline: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW", final={"PAID"})
    pipeline.stage("pay", on="NEW", to="PAID")(pay)
    deployed(conn, pipeline).submit(conn, "a", Order())
    drain(pipeline, dsn)
    visit = visitor(dsn)
    page = opened(visit)
    assert "Has effect &#34;charge&#34; happened?" in page.text or 'Has effect "charge" happened?' in page.text
    form = page.form("/approvals/0")
    known = json.loads(form.fields["field.edit"])
    assert known["error"].startswith("TimeoutError: the bank is silent")
    visit.submit(form, "yes", **{"field.edit": json.dumps({**known, "result": "receipt 7"})})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), len(calls)) == ("PAID", 1)
    assert "effect charge of pay, attempt 1: done" in visit.get("/workflow?pipeline=orders&entity=a").text


def test_an_answer_without_a_change_of_the_form_is_no_edit(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, QUESTION)
    visit = visitor(dsn)
    visit.submit(opened(visit).form("/approvals/0"), "approve")
    assert value(conn, "SELECT edited IS NULL FROM outbox.approvals")


def test_what_has_hidden_fields_or_may_not_be_edited_is_answered_as_it_is(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, QUESTION)
    page = opened(visitor(dsn, hide={"total"}))
    assert not [name for name in page.form("/approvals/0").fields if name.startswith("field.")]
    assert "can't be edited here" in page.text
    conn.execute("UPDATE outbox.approvals SET edits_allowed = false")
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    assert not [name for name in form.fields if name.startswith("field.")]
    assert "Your answer is kept." in visit.submit(form, "approve", **{"field.total": "9"}).text
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == 5


def test_votes_are_those_of_the_person_and_their_groups(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, WaitForApproval("Pay?", options=QUESTION.options, approvers={"finance": 2}))

    def member(name: str, *groups: str) -> Visitor:
        return Visitor(dashboard(dsn, identify=lambda request: Person(name, {"look", "decide"}, groups)))

    stranger = member("eve", "sales")
    page = stranger.submit(opened(stranger).form("/approvals/0"), "approve")
    assert (page.status, "eve may not answer" in page.text) == (409, True)
    ann, ben = member("ann", "finance"), member("ben", "finance")
    assert "ann votes approve" in ann.submit(opened(ann).form("/approvals/0"), "approve").text
    assert status_of(conn, "a") == "WAITING"
    ben.submit(opened(ben).form("/approvals/0"), "approve")
    assert status_of(conn, "a") == "PAID"


def test_the_story_has_who_voted_when_and_why_and_in_whose_place(conn: Conn, dsn: str) -> None:
    waiting(conn, dsn, WaitForApproval("Pay?", options=QUESTION.options, approvers={"finance": 2}))
    delegate(conn, "eva", until=datetime.now(UTC) + timedelta(hours=1), by="ann", groups=["finance"])

    def vote(name: str, *groups: str) -> Visitor:
        visit = Visitor(dashboard(dsn, identify=lambda request: Person(name, {"look", "decide"}, groups)))
        visit.submit(opened(visit).form("/approvals/0"), "approve", reason=f"{name} has looked")
        return visit

    vote("eva")
    signal(conn, "orders", "a", "hurry")
    page = vote("ben", "finance").get("/workflow?pipeline=orders&entity=a")
    story = (
        "asked: Pay?", "vote for approve, in the place of ann eva (outbox_owner) eva has looked", "signal hurry",
        "vote for approve ben (outbox_owner) ben has looked", "answered approve: Pay?",
    )  # fmt: skip
    places = [page.text.find(each) for each in story]
    assert places == sorted(places), page.text
    assert -1 not in places, page.text


def test_filters_and_pages_of_the_inbox(conn: Conn, dsn: str) -> None:
    pipeline = deployed(
        conn, orders(lambda run: WaitForApproval("Pay?", options=QUESTION.options, assignee=f"p{run.data.total % 2}"))
    )
    pipeline.submit_many(conn, ((f"e{n}", Order(total=n)) for n in range(60)))
    drain(pipeline, dsn)
    visit = visitor(dsn)
    for query, wanted in (("", 60), ("assignee=p1", 30), ("pipeline=orders", 60), ("pipeline=other", 0)):
        page, seen = visit.get(f"/approvals?{query}"), set()
        while True:
            seen |= {link for link in page.links if "/approvals/0" in link}
            following = [link for link in page.links if "after=" in link]
            if not following:
                break
            page = visit.get(following[0])
        assert len(seen) == wanted, query


def test_the_inbox_is_read_by_deadline_page_by_page(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "ON_A_PAGE", 2)
    hours = {"e0": 9, "e1": None, "e2": 3, "e3": 6, "e4": 3, "e5": None}

    def ask(run: Any) -> WaitForApproval:
        ends = hours[run.entity_id]
        if ends is None:
            return WaitForApproval("Pay?", options=QUESTION.options, assignee="ann")
        return WaitForApproval(
            "Pay?", options=QUESTION.options, assignee="ann", deadline=timedelta(hours=ends), on_deadline="LATE"
        )

    pipeline = deployed(conn, orders(ask))
    pipeline.submit_many(conn, ((name, Order()) for name in hours))
    drain(pipeline, dsn)
    conn.execute("UPDATE outbox.approvals SET deadline = date_trunc('hour', deadline)")
    visit = visitor(dsn)

    def listed(query: str) -> list[str]:
        page, seen = visit.get(f"/approvals?{query}"), []
        while True:
            seen += re.findall(r"workflow\?pipeline=orders&amp;entity=(e\d)", page.html)
            following = [link for link in page.links if "after=" in link]
            if not following:
                return seen
            page = visit.get(following[0])

    oldest = listed("")
    assert listed("order=deadline") == sorted(oldest, key=lambda name: (hours[name] or 99, oldest.index(name)))
    assert listed("order=deadline&assignee=ann&pipeline=orders") == listed("order=deadline")
    assert listed("order=deadline&assignee=ben") == []


def test_of_two_who_decide_at_the_same_time_one_wins_and_the_other_is_told(conn: Conn, dsn: str, connect: Any) -> None:
    waiting(conn, dsn, QUESTION)
    forms = {name: opened(visitor(dsn, name)).form("/approvals/0") for name in ("ann", "ben")}
    other = connect(autocommit=False)
    other.execute("SELECT FROM outbox.workflow_states FOR UPDATE")
    pages: dict[str, Page] = {}

    def decide(name: str, option: str) -> None:
        pages[name] = visitor(dsn, name, statement_timeout=60).submit(forms[name], option)

    threads = [threading.Thread(target=decide, args=each) for each in (("ann", "approve"), ("ben", "reject"))]
    for thread in threads:
        thread.start()
    held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    wait_for(lambda: value(conn, held) == 2, what="both decide")
    other.rollback()
    for thread in threads:
        thread.join()
    assert sorted(page.status for page in pages.values()) == [200, 409]
    winner = value(conn, "SELECT decided_by FROM outbox.approvals")
    assert "Your answer is kept." in pages[winner].text
    assert f"Too late: {winner} has decided" in pages["ben" if winner == "ann" else "ann"].text
    assert status_of(conn, "a") == ("PAID" if winner == "ann" else "REFUSED")


def test_a_page_left_open_over_a_deploy_says_that_the_question_is_gone(conn: Conn, dsn: str) -> None:
    pipeline = waiting(conn, dsn, QUESTION)
    visit = visitor(dsn)
    form = opened(visit).form("/approvals/0")
    pipeline.move(conn, "a", "LATE", by="deploy")
    page = visit.submit(form, "approve")
    assert (page.status, "Too late" in page.text) == (409, True)


@pytest.fixture
def token(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OUTBOX_LINK_KEYS", "k" * 32)
    waiting(conn, dsn, QUESTION)
    return approval_link(conn, "orders", "a", person="ann", until=datetime.now(UTC) + timedelta(hours=1))


def test_a_signed_link_is_a_form_that_decides_by_post(conn: Conn, dsn: str, token: str) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    for _ in range(2):
        page = visit.get(f"/answer/{token}")
        assert "Pay it?" in page.text
    assert status_of(conn, "a") == "WAITING"
    assert [link for link in page.links if "/answer" not in link and link != "#main"] == [], "it leads nowhere else"
    assert visit.get("/").status == 403
    done = visit.submit(page.form("/answer/"), "approve", reason="by mail")
    assert "This link was used to answer approve" in done.text
    assert conn.execute(LAST).fetchone() == ("approve", "ann", "outbox_owner", "by mail")
    assert visit.post(f"/answer/{token}", {"decision": "reject"}).status == 409


def test_a_signed_link_edits_with_the_form_of_the_model_and_keeps_what_was_typed(
    conn: Conn, dsn: str, token: str
) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    form = visit.get(f"/answer/{token}").form("/answer/")
    assert form.fields["field.total"] == "5"
    refused = visit.submit(form, "approve", **{"field.total": "many", "reason": "a bit less"})
    assert (refused.status, "total" in refused.text) == (400, True)
    kept = refused.form("/answer/")
    assert (kept.fields["field.total"], kept.fields["reason"]) == ("many", "a bit less")
    done = visit.submit(kept, "approve", **{"field.total": "4"})
    assert "This link was used to answer approve" in done.text
    assert value(conn, "SELECT metadata -> 'total' FROM outbox.workflow_states") == 4
    assert conn.execute(LAST).fetchone() == ("approve", "ann", "outbox_owner", "a bit less")


def test_a_signed_link_edits_the_question_s_own_data(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_LINK_KEYS", "k" * 32)
    waiting(conn, dsn, WaitForApproval("Call?", options=QUESTION.options, about={"number": 7}))
    token = approval_link(conn, "orders", "a", person="ann", until=datetime.now(UTC) + timedelta(hours=1))
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    visit.submit(visit.get(f"/answer/{token}").form("/answer/"), "approve", **{"field.edit": '{"number": 8}'})
    assert value(conn, "SELECT edited FROM outbox.approvals") == {"number": 8}


def test_hidden_fields_are_on_no_signed_link(conn: Conn, dsn: str, token: str) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None, hide={"total"}))
    page = visit.get(f"/answer/{token}")
    assert "(hidden)" in page.text
    assert not [name for name in page.form("/answer/").fields if name.startswith("field.")]


def test_a_link_to_data_that_has_changed_since_shows_it_and_asks_again(conn: Conn, dsn: str, token: str) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    form = visit.get(f"/answer/{token}").form("/answer/")
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"total\": 6}'")
    page = visit.submit(form, "approve")
    assert (page.status, "changed while you read" in page.text) == (409, True)
    assert "This link was used" in visit.submit(page.form("/answer/"), "approve").text


def test_a_link_that_is_forged_is_refused_and_one_that_comes_too_late_is_told_so(
    conn: Conn, dsn: str, token: str
) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    forged = visit.get(f"/answer/{token[:-1]}{'A' if token[-1] != 'A' else 'B'}")
    assert (forged.status, "signed" in forged.text) == (410, True)
    form = visit.get(f"/answer/{token}").form("/answer/")
    approve(conn, "orders", "a", by="ben")
    page = visit.submit(form, "reject")
    assert (page.status, "ben has decided approve" in page.text) == (409, True)


def test_a_link_is_not_used_by_another_site_or_where_nobody_may_write(conn: Conn, dsn: str, token: str) -> None:
    visit = Visitor(dashboard(dsn, identify=lambda request: None))
    assert (
        visit.post(f"/answer/{token}", {"decision": "approve"}, headers={"sec-fetch-site": "cross-site"}).status == 403
    )
    looking = Visitor(dashboard(dsn)).post(f"/answer/{token}", {"decision": "approve"})
    assert (looking.status, [link for link in looking.links if link != "#main"]) == (403, [])
    assert status_of(conn, "a") == "WAITING"
