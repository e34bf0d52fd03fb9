"""Agents of the OpenAI Agents SDK in real worker processes that are killed at each of their requests and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

import outbox
from kit.openai_models import returned
from kit.pipelines import deployed, value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
KEYS = {
    "request 0": "support 1/turn 1 request",
    "look_up 7": "support 1/turn 2 call look_up l1",
    "look_up 8": "support 1/turn 2 call look_up l2",
    "request 1": "support 1/turn 2 request",
}
"""The calls before the question, and under which keys their results are kept."""

KEPT = """
    SELECT DISTINCT ON (c.key) c.key, c.made_at
    FROM outbox.checkpoints AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id
    WHERE w.entity_id = %s ORDER BY c.key, c.entered
"""


def test_a_worker_that_is_killed_at_any_point_repeats_nothing_that_was_kept(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """One process for each point, each killed there. Another one takes over; a person answers as soon as it is asked."""
    from apps.openai_agents import POINTS, pipeline

    pipelines = [deployed(conn, pipeline(number)) for number in range(POINTS + 1)]
    conn.execute("CREATE TABLE outbox.calls (entity text, what text, at timestamptz DEFAULT clock_timestamp())")
    for number, each in enumerate(pipelines):
        each.submit(conn, str(number), {})
    process = spawn(program=("-m", "apps.openai_agents"))

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
    for number, each in enumerate(pipelines):
        calls = conn.execute("SELECT what, at FROM outbox.calls WHERE entity = %s", (str(number),)).fetchall()
        kept = dict(conn.execute(KEPT, (str(number),)).fetchall())
        assert {what for what, _ in calls} == {*KEYS, "request 2", "refund 900"}
        assert [what for what, at in calls if what in KEYS and at > kept[KEYS[what]]] == [], (
            "not again once it was kept"
        )
        assert [what for what, _ in calls].count("refund 900") == 1, "which a person was asked about"
        found = each.get(conn, str(number))
        assert found is not None
        assert returned(found.data.transcript.messages) == {"l1": "shipped", "l2": "shipped", "r": "paid"}
        assert found.data.answer == "done"
    approved = "SELECT count(*) FROM outbox.approvals WHERE decision = 'approve'"
    assert value(conn, approved) == POINTS + 1, "each is asked about once"
