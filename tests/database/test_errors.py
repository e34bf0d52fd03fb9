"""Each SQLSTATE of ours carries its data as JSON in DETAIL: the attributes of its class, and no others."""

from __future__ import annotations

import inspect
import json
from typing import Any

import psycopg
import pytest

import outbox
from kit.pipelines import deployed

Conn = psycopg.Connection[Any]

START = "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES "
PAUSE = "INSERT INTO outbox.pauses (pipeline, stage, paused_by) VALUES "
MOVE = "UPDATE outbox.workflow_states SET "
OLD, NEW = "0174e1b0-0000-7000-8000-000000000000", "ffffffff-0000-7000-8000-000000000000"
TAKE = "INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', '{}')"
ASKED = """
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options {more})
    SELECT id, pipeline, entity_id, current_status, version, 'Pay?', {shown}, '{{"yes": "ENRICHED"}}' {values}
    FROM outbox.workflow_states
"""
OPEN = ASKED.format(shown="outbox.shown(metadata)", more="", values="")
COUNTED = ASKED.format(shown="outbox.shown(metadata)", more=", approvers", values=""", '{"law": 1}'""")
ENDED = ASKED.format(
    shown="''",
    more=", ended, ended_at, decision, to_status, decided_by",
    values=", 'decided', '2026-01-02 03:04:05+00', 'yes', 'ENRICHED', 'ann'",
)
LINKED = """
    INSERT INTO outbox.approval_links (approval_id, person, until) SELECT id, 'bob', now() FROM outbox.approvals
"""
A = {"pipeline": "posts", "entity_id": "a"}
Q = {**A, "question": ...}


@pytest.mark.parametrize(
    ("code", "statements", "data"),
    [
        ("OB001", [f"{MOVE} current_status = 'COMPLETED'"], {**A, "from_status": "RECEIVED", "to_status": "COMPLETED"}),
        ("OB002", [f"{START} ('nope', 'b', 'X')"], {"pipeline": "nope", "entity_id": "b", "from_status": None, "to_status": "X"}),
        ("OB002", [f"{START} ('nope', 'b', NULL)"], {"pipeline": "nope", "entity_id": "b", "from_status": None, "to_status": None}),
        ("OB003", [f"{MOVE} current_status = 'X'"], {**A, "from_status": "RECEIVED", "to_status": "X"}),
        ("OB003", [f"{START} ('posts', 'b', 'X')"], {**A, "entity_id": "b", "from_status": None, "to_status": "X"}),
        ("OB004", [f"{MOVE} entity_id = 'b'"], A),
        ("OB005", ["DELETE FROM outbox.state_changes"], {"table": "state_changes", "operation": "DELETE"}),
        ("OB006", [TAKE.format("0" * 32)], {"consumer": "crm", "message_id": "00000000-0000-0000-0000-000000000000"}),
        (
            "OB007",
            ["SELECT setval('outbox.inbox_floor', 19000)", TAKE.format(OLD)],
            {"consumer": "crm", "message_id": OLD, "sent_at": ..., "oldest": "2022-01-08T00:00:00+00:00"},
        ),
        ("OB008", [TAKE.format(NEW)], {"consumer": "crm", "message_id": NEW, "sent_at": ..., "newest": ...}),
        ("OB009", ["SELECT outbox.require_held('mark', 1, 1)"], {"claim": "mark"}),
        ("OB010", ["SELECT outbox.require_held('', 3, 2)"], {"jobs": 3, "held": 2}),
        ("OB011", ["SELECT outbox.decide('posts', 'b', 'yes')"], {**A, "entity_id": "b"}),
        ("OB011", ["INSERT INTO outbox.signals (pipeline, entity_id, name) VALUES ('posts', 'b', 's')"], {**A, "entity_id": "b"}),
        ("OB012", ["SELECT outbox.decide('posts', 'a', 'yes')"], {**A, "status": "RECEIVED"}),
        (
            "OB013",
            [ENDED, "SELECT outbox.decide('posts', 'a', 'yes', 'bob')"],
            {**A, "by": "ann", "at": "2026-01-02T03:04:05+00:00", "ended": "decided", "decision": "yes", "to_status": "ENRICHED"},
        ),
        ("OB014", [OPEN, "SELECT outbox.decide('posts', 'a', 'maybe')"], {**A, "decision": "maybe", "options": ["yes"]}),
        ("OB015", [OPEN, "SELECT outbox.decide('posts', 'a', 'yes', shown => 'x')"], {**A, "shown": ...}),
        ("OB020", [COUNTED, "DELETE FROM outbox.jobs", f"{MOVE} current_status = 'ENRICHED'"], {**Q, "approvers": {"law": 1}, "to_status": "ENRICHED"}),
        ("OB021", [OPEN, OPEN, "SELECT outbox.decide('posts', 'a', 'yes')"], {**A, "questions": ...}),
        ("OB022", [COUNTED, "SELECT outbox.decide('posts', 'a', 'yes', 'bob')"], {**Q, "person": "bob", "approvers": {"law": 1}}),
        ("OB023", [OPEN, "SELECT outbox.decide('posts', 'a', 'yes', about => '1')"], Q),
        (
            "OB024",
            ["SELECT outbox.link_use(outbox.uuid7(), 'yes')"],
            {"pipeline": None, "entity_id": None, "question": None, "person": None, "why": "unknown"},
        ),
        (
            "OB024",
            [OPEN, LINKED, "SELECT outbox.link_use(id, 'yes') FROM outbox.approval_links"],
            {**Q, "person": "bob", "why": "expired"},
        ),
        ("OB030", [f"{MOVE} current_status = 'ENRICHED', version = 0"], {**A, "version": 1, "older": 0}),
        ("OB031", ["DELETE FROM outbox.pipelines"], {"pipeline": "posts"}),
        ("OB032", ["SELECT outbox.cancel('posts', 'a')"], {**A, "status": "RECEIVED"}),
        ("OB033", [f"{PAUSE} ('posts', 'enrihc', 'ann')"], {"pipeline": "posts", "stage": "enrihc", "nearest": "posts.enrich"}),
        ("OB033", [f"{PAUSE} ('x', 'y', 'ann')"], {"pipeline": "x", "stage": "y", "nearest": None}),
        ("OB034", ["SELECT outbox.find(after => 'p:1')"], {"after": "p:1"}),
    ],
)  # fmt: skip
def test_an_error_carries_its_data(conn: Conn, code: str, statements: list[str], data: dict[str, Any]) -> None:
    deployed(conn)
    conn.execute("SET timezone = 'UTC'")
    conn.execute(f"{START} ('posts', 'a', NULL)".encode())
    *before, last = statements
    for statement in before:
        conn.execute(statement.encode())
    with pytest.raises(psycopg.Error) as refused:
        conn.execute(last.encode())
    assert refused.value.sqlstate == code
    found = json.loads(str(refused.value.diag.message_detail))
    assert found == {key: found[key] if expected is ... else expected for key, expected in data.items()}
    ours = outbox.error_of(refused.value)
    assert ours is not None
    assert set(found) == set(inspect.get_annotations(type(ours)))
