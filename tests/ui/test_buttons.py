"""What people do on the page: in their own name, and refused with the reason where it is no longer possible."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

import psycopg
import pytest

from apps.cli import posts
from kit.browsing import visitor
from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from kit.roles import dsn_as
from kit.shop import PARKED, RELAY
from outbox import Pipeline, Reject
from outbox.operations import bulk as operation
from outbox.ui.pages import bulk

Conn = psycopg.Connection[Any]
LAST = "SELECT c.actor, c.login, c.reason FROM outbox.state_changes AS c ORDER BY c.at DESC, c.version DESC LIMIT 1"
ACTIONS = "SELECT a.action, a.actor, a.login, a.reason FROM outbox.actions AS a ORDER BY a.id DESC LIMIT 1"


def bad(conn: Conn, dsn: str) -> None:
    """Has five jobs more die of the same kind of error."""
    posts.submit_many(conn, ((f"bad_{n}", Post(content=f"rejected: customer {n}")) for n in range(5)))
    drain(posts, dsn)


def test_a_move_is_in_the_history_with_the_person_the_login_and_the_reason(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    page = visit.submit(
        visit.get("/workflow?entity=review").form("/workflow/move"), status="APPROVED", reason="fair <i>point</i>"
    )
    assert "It was moved." in page.text
    assert "fair <i>point</i>" in page.text
    assert status_of(shop, "review") == "APPROVED"
    assert shop.execute(LAST).fetchone() == ("sarah", "outbox_owner", "fair <i>point</i>")


def test_a_page_left_open_moves_nothing_that_has_moved_since(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    form = visit.get("/workflow?entity=review").form("/workflow/move")
    shop.execute("UPDATE outbox.workflow_states SET current_status = 'REJECTED' WHERE entity_id = 'review'")
    page = visit.submit(form, status="APPROVED")
    assert (page.status, "is in REJECTED now" in page.text) == (409, True)


def test_a_change_that_a_deploy_has_forbidden_is_refused_with_the_reason(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    form = visit.get("/workflow?entity=review").form("/workflow/move")
    shop.execute("DELETE FROM outbox.legal_changes WHERE to_status = 'REJECTED'")
    page = visit.submit(form, status="REJECTED")
    assert page.status == 409
    assert "REJECTED" in page.text
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"
    gone = visit.submit(form, status="NO_SUCH")
    assert gone.status == 409
    assert visit.post("/workflow/move", {**form.fields, "entity": "nobody"}).status == 404


def test_a_dead_job_runs_again_in_the_name_of_the_person(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    page = visit.submit(visit.get("/workflow?entity=broken").form("/workflow/retry"), reason="try it")
    assert "It runs again." in page.text
    assert "retry of decide" in page.text
    assert shop.execute(ACTIONS).fetchone() == ("retry", "sarah", "outbox_owner", "try it")
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 0
    again = visit.post("/workflow/retry", {"pipeline": "posts", "entity": "broken"})
    assert (again.status, "no dead job any more" in again.text) == (409, True)


def test_dead_jobs_of_a_kind_run_again_together_and_others_stay(shop: Conn, dsn: str) -> None:
    bad(shop, dsn)
    visit = visitor(dsn)
    page = visit.get("/dead")
    assert "Retry 5" in page.text
    assert "Retry all 6" in page.text
    form = next(form for form in page.forms if form.fields.get("error", "").endswith("customer #"))
    asked = visit.open(form)
    assert "Retry 5 workflows" in asked.text, "the number before it is done"
    done = visit.submit(asked.form("/bulk"), reason="fixed")
    assert "(5)" in done.text
    assert [row[0] for row in shop.execute("SELECT entity_id FROM outbox.dead_jobs").fetchall()] == ["broken"]
    assert shop.execute(
        "SELECT DISTINCT actor, login, reason, count(*) FROM outbox.actions GROUP BY 1, 2, 3"
    ).fetchall() == [("sarah", "outbox_owner", "fixed", 5)]


def test_all_dead_jobs_run_again(shop: Conn, dsn: str) -> None:
    bad(shop, dsn)
    visit = visitor(dsn)
    asked = visit.open(next(form for form in visit.get("/dead").forms if "error" not in form.fields))
    assert "(6)" in visit.submit(asked.form("/bulk")).text
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 0
    assert "(0)" in visit.submit(asked.form("/bulk")).text, "who presses it next is told that nothing was left"


def test_what_a_filter_holds_is_moved_in_batches_with_progress(
    shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "BATCH", 2)
    monkeypatch.setattr(bulk, "PATIENCE", 1e-9)
    posts.submit_many(shop, ((f"risky_{n}", Post(content="risky")) for n in range(6)))
    drain(posts, dsn)
    visit = visitor(dsn)
    page = visit.get(visit.get("/workflows?pipeline=posts&status=WAITING_FOR_REVIEW&entity=risky").link("act=move"))
    assert "6 workflows" in page.text
    assert re.findall(r'<option value="(\w+)"', page.html) == ["APPROVED", "REJECTED"], "only what leads on from there"
    posts.submit(shop, "risky_late", Post(content="risky"))
    drain(posts, dsn)
    page = visit.submit(page.form("/bulk"), to_status="REJECTED", reason="spam")
    shown = []
    while "done" in page.text and "Go on" in page.text:
        shown.append(page.text.partition(" of 6 workflows done")[0].rpartition(" ")[2])
        assert any("Stop" in part for part in page.html.split("<a ")), "it can be stopped"
        page = visit.submit(page.form("/bulk"))
    assert shown == ["2", "4", "6"]
    assert "It was done to all of them. (6)" in page.text
    assert status_of(shop, "risky_late") == status_of(shop, "review") == "WAITING_FOR_REVIEW"
    assert shop.execute(LAST).fetchone() == ("sarah", "outbox_owner", "spam")


def test_what_is_stopped_has_done_what_it_has_done(shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation, "BATCH", 2)
    monkeypatch.setattr(bulk, "PATIENCE", 1e-9)
    posts.submit_many(shop, ((f"risky_{n}", Post(content="risky")) for n in range(6)))
    drain(posts, dsn)
    visit = visitor(dsn)
    page = visit.get("/bulk?act=move&pipeline=posts&entity=risky")
    page = visit.submit(page.form("/bulk"), to_status="REJECTED")
    stopped = visit.get(next(link for link in page.links if "/workflows?" in link))
    assert stopped.status == 200
    assert value(shop, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'REJECTED'") == 2


@pytest.mark.parametrize(
    "query",
    ["act=cancel", "act=retry", "act=move", "act=delete&pipeline=posts", "", "act=cancel&dead=0", "act=move&entity=r",
     "act=cancel&pipeline=posts&older=soon", "act=cancel&entity=a%00"],
)  # fmt: skip
def test_what_is_done_to_many_says_to_which_and_what(shop: Conn, dsn: str, query: str) -> None:
    visit = visitor(dsn)
    assert visit.get(f"/bulk?{query}").status == 400
    sent = {**dict(parse_qsl(query)), "until": "2026-01-01 00:00:00+00", "to_status": "REJECTED"}
    assert visit.post("/bulk", sent).status == 400
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"


@pytest.mark.parametrize("change", [{"until": "x"}, {"until": "2026-01-01"}, {"done": "x"}, {"to_status": ""}])
def test_a_form_for_many_that_no_page_of_ours_has_made_changes_nothing(
    shop: Conn, dsn: str, change: dict[str, str]
) -> None:
    sent = {"act": "move", "pipeline": "posts", "until": "2126-01-01 00:00:00+00", "to_status": "REJECTED"}
    assert visitor(dsn).post("/bulk", {**sent, **change}).status == 400
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"


def test_a_page_for_many_left_open_over_a_deploy_says_what_is_no_longer_possible(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    form = visit.get("/bulk?act=move&pipeline=posts&entity=review").form("/bulk")
    shop.execute("DELETE FROM outbox.legal_changes WHERE to_status = 'REJECTED'")
    page = visit.submit(form, to_status="REJECTED")
    assert "0 of 1 workflow done, 1 passed over" in page.text
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"


def test_what_is_held_by_others_stops_it_where_it_is_and_it_can_go_on(shop: Conn, dsn: str, connect: Any) -> None:
    other = connect(autocommit=False)
    other.execute("SELECT FROM outbox.workflow_states WHERE entity_id = 'review' FOR UPDATE")
    visit = visitor(dsn, statement_timeout=0.3)
    form = visit.get("/bulk?act=move&pipeline=posts&entity=review").form("/bulk")
    page = visit.submit(form, to_status="REJECTED")
    assert (page.status, "nothing was changed" in page.text, "data-go-on" in page.html) == (503, True, False)
    other.rollback()
    assert "(1)" in visit.submit(page.form("/bulk")).text


def test_a_form_that_is_sent_twice_sends_one_signal(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    form = visit.get("/workflow?entity=new").form("/workflow/signal")
    assert "was sent" in visit.submit(form, name="go", payload="1").text
    assert "it was sent once" in visit.submit(form, name="go", payload="1").text
    assert "was sent" in visit.submit(form, name="go", payload="2").text  # after Back: another signal
    sent = shop.execute("SELECT payload FROM outbox.signals ORDER BY payload").fetchall()
    assert sent == [(1,), (2,)]


def test_a_signal_is_sent_with_its_payload_as_json(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    form = visit.get("/workflow?entity=new").form("/workflow/signal")
    page = visit.submit(form, name="paid", payload='{"n": 12345678901234567890}')
    assert "12345678901234567890" in page.text
    assert shop.execute("SELECT sent_by, login, payload::text FROM outbox.signals").fetchone() == (
        "sarah", "outbox_owner", '{"n": 12345678901234567890}',
    )  # fmt: skip
    for payload in ("{", "NaN", '{"a": 1, "a": 2}', "[" * 5000):
        assert visit.submit(form, name="paid", payload=payload).status == 400, payload[:20]
    assert visit.submit(form, name="").status == 400
    assert value(shop, "SELECT count(*) FROM outbox.signals") == 1


def test_a_workflow_is_cancelled_where_its_pipeline_has_a_status_for_that(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE", "CANCELLED"}, cancelled="CANCELLED")
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, pipeline)
    pipeline.submit(conn, "a", {})
    visit = visitor(dsn)
    page = visit.submit(visit.get("/workflow?entity=a").form("/workflow/cancel"), reason="not needed")
    assert "It was cancelled." in page.text
    assert conn.execute(LAST).fetchone() == ("sarah", "outbox_owner", "not needed")
    assert not [form for form in page.forms if "cancel" in form.action]


def test_a_workflow_that_can_not_be_cancelled_has_no_button_and_says_why(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    assert not [form for form in visit.get("/workflow?entity=new").forms if "cancel" in form.action]
    page = visit.post("/workflow/cancel", {"pipeline": "posts", "entity": "new"})
    assert (page.status, "cancelled" in page.text) == (409, True)


def test_a_stage_is_paused_and_resumed_in_the_name_of_the_person(shop: Conn, dsn: str) -> None:
    visit = visitor(dsn)
    page = visit.submit(visit.get("/").form("/stages/pause"))
    assert "The stage is paused." in page.text
    assert shop.execute("SELECT stage, paused_by, login FROM outbox.pauses").fetchone() == (
        "enrich",
        "sarah",
        "outbox_owner",
    )
    assert "by sarah" in visit.get("/workers").text
    page = visit.submit(visit.get("/workers").form("/stages/resume"))
    assert "The stage runs again." in page.text
    assert value(shop, "SELECT count(*) FROM outbox.pauses") == 0
    assert visit.post("/stages/pause", {"pipeline": "posts", "stage": "nope"}).status == 404
    assert visit.post("/stages/stop", {"pipeline": "posts", "stage": "enrich"}).status == 404
    assert value(shop, "SELECT count(*) FROM outbox.pauses") == 0


def test_a_parked_message_is_tried_again(shop: Conn, dsn: str) -> None:
    shop.execute(RELAY, ("eu", "box:7", None, "1 hour"))
    shop.execute(PARKED, ("eu", 17))
    visit = visitor(dsn)
    assert "(1)" in visit.submit(visit.get("/messages").form("/messages/retry")).text
    assert value(shop, "SELECT retry FROM outbox.parked_messages")
    assert visit.post("/messages/retry", {"relay": "eu", "id": "99"}).status == 404
    assert visit.post("/messages/retry", {"id": "17"}).status == 400
    assert visit.post("/messages/retry", {"relay": "eu", "id": "x"}).status == 400


def test_what_somebody_else_holds_is_left_as_it_is_and_said(shop: Conn, dsn: str, connect: Any) -> None:
    other = connect(autocommit=False)
    other.execute("SELECT FROM outbox.workflow_states WHERE entity_id = 'review' FOR UPDATE")
    visit = visitor(dsn, statement_timeout=0.2)
    page = visit.post("/workflow/move", {"pipeline": "posts", "entity": "review", "status": "APPROVED"})
    assert (page.status, "nothing was changed" in page.text) == (503, True)
    other.rollback()
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"


def test_a_role_that_may_only_look_changes_nothing_and_is_told_so(shop: Conn, dsn: str, admin_dsn: str) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE only_looks LOGIN")
        try:
            admin.execute(
                "GRANT USAGE ON SCHEMA outbox TO only_looks; GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO only_looks"
            )
            visit = visitor(dsn_as("only_looks", dsn))
            page = visit.submit(visit.get("/workflow?entity=review").form("/workflow/move"), status="APPROVED")
            assert (page.status, "may only look" in page.text) == (403, True)
            both = visitor(dsn_as("only_looks", dsn), operate_dsn=dsn)
            assert (
                "It was moved."
                in both.submit(both.get("/workflow?entity=review").form("/workflow/move"), status="APPROVED").text
            )
        finally:
            admin.execute("DROP OWNED BY only_looks; DROP ROLE only_looks")


def test_what_is_read_can_not_write_even_as_the_owner(conn: Conn, dsn: str) -> None:
    deployed(conn, one_stage(lambda run: (_ for _ in ()).throw(Reject("no"))))
    assert visitor(dsn).get("/").status == 200
