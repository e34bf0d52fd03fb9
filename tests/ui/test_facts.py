"""What the page shows and no command does: what may be done, how much flows, what has changed."""

from __future__ import annotations

from typing import Any

import psycopg

from apps.cli import posts
from kit.pipelines import drain, status_of
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


def test_a_pipeline_that_is_not_deployed_has_no_map(shop: Conn) -> None:
    assert facts.pipeline_map(shop, "nope") is None
    found = facts.pipeline_map(shop, "posts")
    assert found is not None
    assert found["initial"] == "RECEIVED"
    assert ["WAITING_FOR_REVIEW", "APPROVED"] in found["changes"]
