"""Agents in real worker processes that are killed at each of their requests and calls."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
import pytest

import outbox
from kit import forked, models, openai_models
from kit.pipelines import deployed, value
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


class Kind(NamedTuple):
    """A framework: its program, under which keys the calls before the question are kept, and its tools' results."""

    program: str
    keys: dict[str, str]
    returned: Callable[[Any], dict[str, Any]]


KINDS = {
    "pydantic_ai": Kind(
        "apps.agents",
        {
            "request 0": "run 1/model request 1",
            "look_up 7": "run 1/step 1 call look_up l1 1",
            "look_up 8": "run 1/step 1 call look_up l2 1",
            "request 1": "run 1/model request 2",
        },
        lambda transcript: models.returned(transcript.history()),
    ),
    "openai": Kind(
        "apps.openai_agents",
        {
            "request 0": "support 1/turn 1 request",
            "look_up 7": "support 1/turn 2 call look_up l1",
            "look_up 8": "support 1/turn 2 call look_up l2",
            "request 1": "support 1/turn 2 request",
        },
        lambda transcript: openai_models.returned(transcript.messages),
    ),
}

KEPT = """
    SELECT DISTINCT ON (c.key) c.key, c.made_at
    FROM outbox.checkpoints AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id
    WHERE w.entity_id = %s ORDER BY c.key, c.entered
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_killed_at_any_point_repeats_nothing_that_was_kept(
    conn: Conn, dsn: str, spawn: Spawn, kind: str
) -> None:
    """One process for each point, each killed there. Another one takes over; a person answers as soon as it is asked."""
    program, keys, returned = KINDS[kind]
    app = importlib.import_module(program)

    pipelines = [deployed(conn, app.pipeline(number)) for number in range(app.POINTS + 1)]
    conn.execute("CREATE TABLE outbox.calls (entity text, what text, at timestamptz DEFAULT clock_timestamp())")
    for number, each in enumerate(pipelines):
        each.submit(conn, str(number), {})
    forked.imports(f"outbox.agents.{kind}")
    process = spawn(program=("-m", program))

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
            value(
                conn, "SELECT count(*) = %s FROM outbox.workflow_states WHERE current_status = 'DONE'", app.POINTS + 1
            )
        )

    wait_for(ended, what="all have ended")
    for number, each in enumerate(pipelines):
        calls = conn.execute("SELECT what, at FROM outbox.calls WHERE entity = %s", (str(number),)).fetchall()
        kept = dict(conn.execute(KEPT, (str(number),)).fetchall())
        assert {what for what, _ in calls} == {*keys, "request 2", "refund 900"}
        assert [what for what, at in calls if what in keys and at > kept[keys[what]]] == [], (
            "not again once it was kept"
        )
        assert [what for what, _ in calls].count("refund 900") == 1, "which a person was asked about"
        found = each.get(conn, str(number))
        assert found is not None
        assert returned(found.data.transcript) == {"l1": "shipped", "l2": "shipped", "r": "paid"}
        assert found.data.answer == "done"
    approved = "SELECT count(*) FROM outbox.approvals WHERE decision = 'approve'"
    assert value(conn, approved) == app.POINTS + 1, "each is asked about once"
