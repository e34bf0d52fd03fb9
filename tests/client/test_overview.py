"""How many workflows are where, as rows of Python."""

from __future__ import annotations

from typing import Any

import psycopg

from kit.commands import Outbox
from kit.pipelines import deployed
from outbox import status

Conn = psycopg.Connection[Any]


def test_it_is_what_the_command_says(outbox: Outbox, shop: Conn) -> None:
    rows = outbox("status", "--json").json["overview"]
    found = status(shop, pipeline="posts")
    assert [(each.pipeline, each.status, each.stage, each.workflows, each.ready, each.dead) for each in found] == [
        (row["pipeline"], row["status"], row["stage"], row["workflows"], row["ready"], row["dead"])
        for row in rows
        if row["pipeline"] == "posts"
    ]
    assert sum(each.workflows for each in found) > 0


def test_a_pipeline_without_workflows_has_its_statuses_in_their_order(conn: Conn) -> None:
    deployed(conn)
    names = ["RECEIVED", "ENRICHED", "WAITING_FOR_REVIEW", "APPROVED", "COMPLETED", "REJECTED"]
    assert [each.status for each in status(conn)] == names
    assert {(each.workflows, each.oldest_waiting_seconds) for each in status(conn)} == {(0, None)}
    assert [each.served for each in status(conn) if each.stage] == [False] * 3
    assert status(conn, pipeline="other") == []
