"""Agents in real worker processes that are killed at each of their requests and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

import outbox
from kit.models import returned
from kit.pipelines import deployed, value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


def test_a_worker_that_is_killed_at_any_point_repeats_nothing_that_was_kept(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """One process for each point, each killed there. Another one takes over; a person answers as soon as it is asked."""
    from apps.agents import POINTS, pipeline

    pipelines = [deployed(conn, pipeline(number)) for number in range(POINTS + 1)]
    conn.execute("CREATE TABLE outbox.calls (entity text, what text, at bigint GENERATED ALWAYS AS IDENTITY)")
    for number, each in enumerate(pipelines):
        each.submit(conn, str(number), {})
    process = spawn(program=("-m", "apps.agents"))

    def ended() -> bool:
        assert process.running, process.text()
        for asked in outbox.approvals(conn):
            answer, about = "approve", None
            if "yes" in asked.options:  # it isn't known whether money was sent: the person looks at the bank
                sent = value(
                    conn, "SELECT count(*) FROM outbox.calls WHERE entity = %s AND what = 'refund 900'", asked.entity_id
                )
                answer, about = ("yes", {"result": "paid"}) if sent else ("no", None)
            outbox.decide(conn, asked.pipeline, asked.entity_id, answer, by="sarah", about=about, question=asked.id)
        return bool(
            value(conn, "SELECT count(*) = %s FROM outbox.workflow_states WHERE current_status = 'DONE'", POINTS + 1)
        )

    wait_for(ended, what="all have ended")
    made = {f"request {n}" for n in range(3)} | {"look_up 7", "look_up 8", "refund 900"}
    for number, each in enumerate(pipelines):
        rows = conn.execute("SELECT what FROM outbox.calls WHERE entity = %s", (str(number),)).fetchall()
        calls = [what for (what,) in rows]
        twice = {what for what in calls if calls.count(what) > 1}
        assert set(calls) == made
        assert max(map(calls.count, calls)) <= 2
        # What was under way when its process died: a request or a call, or two calls at once.
        assert len(twice) <= 1 or twice == {"look_up 7", "look_up 8"}, (number, twice)
        assert calls.count("refund 900") == 1, "which a person was asked about"
        found = each.get(conn, str(number))
        assert found is not None
        assert returned(found.data.transcript.history()) == {"l1": "shipped", "l2": "shipped", "r": "paid"}
        assert found.data.answer == "done"
    approved = "SELECT count(*) FROM outbox.approvals WHERE decision = 'approve'"
    assert value(conn, approved) == POINTS + 1, "each is asked about once"
    assert value(conn, "SELECT count(*) FROM outbox.approvals WHERE decision IN ('yes', 'no')") == 2
