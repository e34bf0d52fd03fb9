"""The agents of examples/refund_agent, run by a real worker that is killed while its question waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from kit import forked
from kit.commands import Outbox
from kit.pipelines import deployed, status_of, value
from kit.servers import Process, wait_for

EXAMPLES = str(Path(__file__).parents[2] / "examples")
WORKER = ["worker", "--app", "refund_agent.pipeline:cases"]
HERE = {"PYTHONPATH": EXAMPLES}


def test_a_refund_waits_for_a_person_who_edits_it(
    conn: psycopg.Connection[Any], dsn: str, spawn: Callable[..., Process], monkeypatch: Any
) -> None:
    forked.imports("outbox.agents.openai")
    monkeypatch.syspath_prepend(EXAMPLES)
    from refund_agent.pipeline import cases

    deployed(conn, cases)
    cases.submit(conn, "case_7", {"customer": "eva", "message": "Where is order 7?"})
    first = spawn(*WORKER, env=HERE)
    wait_for(lambda: status_of(conn, "case_7") == "WAITING_FOR_APPROVAL", what="a person is asked")
    first.kill9()
    cli = Outbox(dsn)
    (asked,) = cli("approvals", "--json").json
    assert asked["question"] == "refunds: refund"
    edit = json.dumps({"order": "7", "cents": 500})
    assert "by sarah -> ANSWERED" in cli("approve", "case_7", "--by", "sarah", "--about", edit).out
    spawn(*WORKER, env=HERE)
    wait_for(lambda: status_of(conn, "case_7") == "ANSWERED_CUSTOMER", what="the customer is answered")
    answer = value(conn, "SELECT metadata ->> 'answer' FROM outbox.workflow_states")
    assert answer == "Your parcel is lost, I am sorry. We have sent you 500 cents."
