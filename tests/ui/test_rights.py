"""The page reads as outbox_viewer and changes as outbox_operator: each may all that the page needs, and the viewer nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from kit.browsing import Visitor, visitor
from kit.databases import OWNER
from kit.pipelines import deployed, status_of, value
from kit.roles import dsn_as, forget_groups
from kit.waits import QUESTION, waiting
from outbox import Pipeline
from outbox.database import migrations

Conn = psycopg.Connection[Any]


@pytest.fixture
def logins(conn: Conn, dsn: str, admin_dsn: str) -> Iterator[tuple[str, str]]:
    """The DSNs of a login that may look, and of one that may operate."""
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        forget_groups(admin)
        migrations.make_roles(admin)
        for group in ("viewer", "operator"):
            admin.execute(f"CREATE ROLE login_{group} LOGIN IN ROLE outbox_{group}".encode())
        yield dsn_as("login_viewer", dsn), dsn_as("login_operator", dsn)
        forget_groups(admin)


def test_all_that_the_page_shows_and_does_is_allowed_to_the_two_groups(
    shop: Conn, dsn: str, logins: tuple[str, str]
) -> None:
    waiting(shop, dsn, QUESTION)
    lamps: Pipeline[Any] = Pipeline("lamps", initial="OFF", final={"GONE"}, cancelled="GONE")
    lamps.allow("OFF", to="ON")
    deployed(shop, lamps)
    lamps.submit_many(shop, ((f"lamp_{n}", {}) for n in range(4)))
    viewer, operator = logins
    visit = visitor(viewer, operate_dsn=operator)
    for path in ("/", "/workflows", "/workflow?pipeline=posts&entity=broken", "/approvals", "/approvals?order=deadline",
                 "/dead", "/messages", "/workers", "/doctor", "/pipeline?pipeline=posts", "/bulk?act=retry&dead=1"):  # fmt: skip
        page = visit.get(path)
        assert page.status == 200, path
        assert "permission denied" not in page.text, path
    for path, sent, told in (
        ("/stages/pause", {"pipeline": "posts", "stage": "act"}, "The stage is paused."),
        ("/stages/resume", {"pipeline": "posts", "stage": "act"}, "The stage runs again."),
        ("/workflow/move?pipeline=posts&entity=review", {"status": "APPROVED"}, "It was moved."),
        ("/workflow/signal?pipeline=posts&entity=new", {"name": "hurry"}, "The signal was sent."),
        ("/workflow/cancel?pipeline=lamps&entity=lamp_0", {}, "It was cancelled."),
    ):  # fmt: skip
        assert told in visit.post(path, sent).text, path
    question = visit.get("/approvals").form("/approvals/0")
    assert "Your answer is kept." in visit.submit(question, "approve").text
    for query, more in (("act=retry&dead=1", {}), ("act=move&pipeline=lamps&entity=lamp_1", {"to_status": "ON"}),
                        ("act=cancel&pipeline=lamps", {})):  # fmt: skip
        assert "It was done to all of them." in visit.submit(visit.get(f"/bulk?{query}").form("/bulk"), **more).text, (
            query
        )
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 0
    logins_kept = "SELECT DISTINCT login FROM outbox.state_changes WHERE actor = 'sarah'"
    assert shop.execute(logins_kept).fetchall() == [("login_operator",)]
    assert OWNER not in viewer + operator


def test_who_has_only_a_viewer_s_dsn_changes_nothing(shop: Conn, dsn: str, logins: tuple[str, str]) -> None:
    visit: Visitor = visitor(logins[0])
    for path, sent in (
        ("/workflow/move", {"pipeline": "posts", "entity": "review", "status": "APPROVED"}),
        ("/workflow/retry", {"pipeline": "posts", "entity": "broken"}),
        ("/bulk", {"act": "move", "pipeline": "posts", "to_status": "APPROVED", "until": "2126-01-01 00:00:00+00"}),
        ("/bulk", {"act": "retry", "dead": "1", "until": "2126-01-01 00:00:00+00"}),
        ("/stages/pause", {"pipeline": "posts", "stage": "act"}),
    ):  # fmt: skip
        page = visit.post(path, sent)
        assert (page.status, "may only look" in page.text) == (403, True), path
    assert status_of(shop, "review") == "WAITING_FOR_REVIEW"
    assert value(shop, "SELECT count(*) FROM outbox.dead_jobs") == 1
