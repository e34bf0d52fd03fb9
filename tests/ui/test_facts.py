"""What the page shows and no command does: what may be done, how much flows, what has changed."""

from __future__ import annotations

from typing import Any

import psycopg

from apps.cli import posts
from kit.pipelines import deployed, drain, status_of, value
from outbox import Pipeline, Run, WaitForApproval, decide
from outbox.operations import look
from outbox.ui import facts

Conn = psycopg.Connection[Any]


def test_moves_are_those_that_are_legal_from_the_status(shop: Conn) -> None:
    assert facts.moves_of(shop, look.find_one(shop, "review")) == {
        "moves": ["APPROVED", "REJECTED"], "final": False, "cancellable": False,
    }  # fmt: skip
    assert facts.moves_of(shop, look.find_one(shop, "done"))["final"]


def test_the_flow_of_the_hour_counts_by_minute_who_left_a_status(shop: Conn, dsn: str) -> None:
    found = facts.flow_of_hour(shop)
    assert sum(found["posts", "RECEIVED"]) == 3
    assert len(found["posts", "RECEIVED"]) == 60


def test_a_mark_changes_with_what_it_is_of_and_with_nothing_else(shop: Conn, dsn: str) -> None:
    before = facts.changes_seen(shop)
    assert facts.changes_seen(shop) == before
    shop.execute("INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES ('posts', 'act', 'ann')")
    after = facts.changes_seen(shop)
    assert {name for name in before if before[name] != after[name]} == {"actions"}
    shop.execute("DELETE FROM outbox.pauses")
    drain(posts, dsn)
    assert status_of(shop, "new") != "RECEIVED"
    moved = facts.changes_seen(shop)
    assert "flow" in {name for name in before if after[name] != moved[name]}


def test_the_mark_of_questions_changes_with_a_vote_and_with_an_answer_however_many_are_open(
    conn: Conn, dsn: str
) -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"YES", "NO"})

    @pipeline.stage("ask", on="NEW", to="ASKED", batch=100, transaction=True)
    def ask(runs: list[Run[Any]]) -> list[WaitForApproval[Any]]:
        return [WaitForApproval("Well?", options={"yes": "YES", "no": "NO"}, approvers={"team": 2}) for _ in runs]

    pipeline.allow("ASKED", to={"YES", "NO"})
    deployed(conn, pipeline)
    pipeline.submit_many(conn, ((f"e{number}", {}) for number in range(1_005)))
    drain(pipeline, dsn)
    seen = [facts.changes_seen(conn)["approvals"]]
    for person in ("ann", "bob"):
        decide(conn, pipeline, "e0", "yes", by=person, groups=["team"])
        seen.append(facts.changes_seen(conn)["approvals"])
    latest = value(
        conn, "SELECT entity_id FROM outbox.approvals WHERE ended_at IS NULL ORDER BY id DESC OFFSET 1 LIMIT 1"
    )
    for person in ("ann", "bob"):
        decide(conn, pipeline, latest, "yes", by=person, groups=["team"])
    seen.append(facts.changes_seen(conn)["approvals"])
    assert len(set(seen)) == 4, seen


def test_a_pipeline_that_is_not_deployed_has_no_map(shop: Conn) -> None:
    assert facts.pipeline_map(shop, "nope") is None
    found = facts.pipeline_map(shop, "posts")
    assert found is not None
    assert found["initial"] == "RECEIVED"
    assert ["WAITING_FOR_REVIEW", "APPROVED"] in found["changes"]
