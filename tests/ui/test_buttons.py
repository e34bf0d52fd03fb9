"""What people do on the page: in their own name, and refused with the reason where it is no longer possible."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from apps.cli import posts
from kit.browsing import visitor
from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from kit.roles import dsn_as
from kit.shop import PARKED, RELAY
from outbox import Pipeline, Reject
from outbox.ui.pages import dead

Conn = psycopg.Connection[Any]
LAST = "SELECT c.actor, c.login, c.reason FROM outbox.state_changes AS c ORDER BY c.at DESC, c.version DESC LIMIT 1"
ACTIONS = "SELECT a.action, a.actor, a.login, a.reason FROM outbox.actions AS a ORDER BY a.id DESC LIMIT 1"


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


def test_dead_jobs_of_a_kind_run_again_together_and_others_stay(
    shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "BATCH", 2)
    posts.submit_many(shop, ((f"bad_{n}", Post(content=f"rejected: customer {n}")) for n in range(5)))
    drain(posts, dsn)
    visit = visitor(dsn)
    page = visit.get("/dead")
    assert "Retry 5" in page.text
    form = next(form for form in page.forms if form.fields.get("error", "").endswith("customer #"))
    done = visit.submit(form)
    assert "(5)" in done.text
    assert [row[0] for row in shop.execute("SELECT entity_id FROM outbox.dead_jobs").fetchall()] == ["broken"]
    assert value(shop, "SELECT count(*) FROM outbox.actions WHERE actor = 'sarah'") == 5


def test_a_long_retry_ends_after_a_while_and_goes_on_where_it_was(
    shop: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "BATCH", 2)
    monkeypatch.setattr(dead, "PATIENCE", 1e-9)
    posts.submit_many(shop, ((f"bad_{n}", Post(content=f"rejected: customer {n}")) for n in range(5)))
    drain(posts, dsn)
    visit = visitor(dsn)
    form = next(form for form in visit.get("/dead").forms if form.fields.get("error", "").endswith("customer #"))
    page = visit.submit(form)
    rounds = 1
    while "Go on" in page.text:
        page = visit.submit(next(form for form in page.forms if form.fields.get("after")))
        rounds += 1
    assert rounds > 1
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs WHERE entity_id LIKE 'bad%'") == 0


@pytest.mark.parametrize(
    "sent", [{"reason": "x"}, {"pipeline": "posts"}, {"error": "x"}, {"pipeline": "posts", "error": ""}]
)
def test_a_retry_without_a_filter_is_refused(shop: Conn, dsn: str, sent: dict[str, str]) -> None:
    assert visitor(dsn).post("/dead/retry", sent).status == 400
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 1


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
