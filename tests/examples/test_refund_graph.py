"""The graph of the examples, run by a real worker that is killed while its question waits."""

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
WORKER = ["worker", "--app", "refund_graph.pipeline:refunds"]
HERE = {"PYTHONPATH": EXAMPLES}


def test_a_refund_is_asked_about_and_a_person_changes_it(
    conn: psycopg.Connection[Any], dsn: str, spawn: Callable[..., Process], monkeypatch: Any
) -> None:
    forked.imports("outbox.agents.langgraph")
    monkeypatch.syspath_prepend(EXAMPLES)
    from refund_graph.pipeline import refunds

    deployed(conn, refunds)
    refunds.submit(conn, "case_7", {"order": "7", "message": "Where is it?"})
    first = spawn(*WORKER, env=HERE)
    wait_for(lambda: status_of(conn, "case_7") == "WAITING_FOR_ANSWER", what="a person is asked")
    first.kill9()
    cli = Outbox(dsn)
    (asked,) = cli("approvals", "--json").json
    assert (asked["question"], asked["assignee"]) == ("Refund it?", "sarah")
    edit = json.dumps({"cents": 500})
    assert "by sarah -> ANSWERED" in cli("decide", "case_7", "yes", "--by", "sarah", "--about", edit).out
    spawn(*WORKER, env=HERE)
    wait_for(lambda: status_of(conn, "case_7") == "CLOSED", what="the customer is answered")
    answer = value(conn, "SELECT metadata ->> 'answer' FROM outbox.workflow_states")
    assert answer == "Your parcel is lost, I am sorry. We send you 500 cents."
