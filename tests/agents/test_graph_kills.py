"""Graphs in real worker processes that are killed at each of their nodes, or lose their lease, and crashes at each step."""

from __future__ import annotations

import json
import operator
import os
import signal
from collections.abc import Callable
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Send, interrupt

import outbox
from kit import forked
from kit.pipelines import QUICK, deployed, drain, drain_all, status_of, value
from kit.servers import Process, wait_for
from outbox import Pipeline, Run
from outbox.agents.langgraph import graph_stage
from outbox.testing import crash_everywhere

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
NODES = ("first", "beside", "before", "ask", "after", "last", "end")

ENTRIES = """
    SELECT c.result #>> '{}', c.made_at
    FROM outbox.checkpoints AS c JOIN outbox.workflow_states AS w ON w.id = c.workflow_id
    WHERE w.entity_id = %s ORDER BY c.entered, length(c.key), c.key
"""


def kept(conn: Conn, entity: str) -> dict[str, Any]:
    """Returns when what each node has said was stored."""
    found: dict[str, Any] = {}
    for entry, at in conn.execute(ENTRIES, (entity,)):
        for each in json.loads(entry):
            if "write" in each and any(channel == "said" for _, channel, _ in each["values"]):
                found.setdefault(each["task"][1].rpartition(", ")[2], at)
    return found


def test_a_worker_that_is_killed_at_any_point_repeats_no_node_that_was_kept(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """One process for each point, each killed there. Another one takes over; a person answers as soon as it is asked."""
    from apps.graphs import POINTS, pipeline

    pipelines = [deployed(conn, pipeline(number)) for number in range(POINTS + 1)]
    conn.execute("CREATE TABLE outbox.calls (entity text, what text, at timestamptz DEFAULT clock_timestamp())")
    for number, each in enumerate(pipelines):
        each.submit(conn, str(number), {})
    forked.imports("outbox.agents.langgraph")
    process = spawn(program=("-m", "apps.graphs"))

    def ended() -> bool:
        assert process.running, process.text()
        for asked in outbox.approvals(conn):
            answer = "approve" if asked.question == "one?" else "reject"
            outbox.decide(conn, asked.pipeline, asked.entity_id, answer, by="sarah", question=asked.id)
        done = "SELECT count(*) = %s FROM outbox.workflow_states WHERE current_status = 'DONE'"
        return bool(value(conn, done, POINTS + 1))

    wait_for(ended, what="all have ended")
    for number, each in enumerate(pipelines):
        calls = conn.execute("SELECT what, at FROM outbox.calls WHERE entity = %s", (str(number),)).fetchall()
        stored = kept(conn, str(number))
        assert {what for what, _ in calls} == set(NODES)
        assert [what for what, at in calls if at > stored[what]] == [], "not again once it was kept"
        assert len(calls) <= len(NODES) + 2, "what was under way is repeated, and no more"
        found = each.get(conn, str(number))
        assert found is not None
        assert found.data.said == ["first", "beside", "before", "approve reject", "after", "last", "end"]
    assert value(conn, "SELECT count(*) FROM outbox.approvals") == 2 * (POINTS + 1), "each is asked once"


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]
    answers: str


class Answers(TypedDict):
    answers: str


calls: list[str] = []


def asking(state: State) -> State:
    one, two = interrupt("one?"), interrupt("two?")
    calls.append("ask")
    return {"answers": f"{one['decision']} {two['decision']}"}


def words(state: dict[str, Any]) -> State:
    calls.append(state["word"])
    return {"said": [state["word"]]}


def crashing() -> Pipeline[Any]:
    inner = StateGraph(State, output_schema=Answers)
    inner.add_node("ask", asking)
    inner.add_edge(START, "ask")
    outer = StateGraph(State)
    outer.add_node("words", words)
    outer.add_node("inner", inner.compile())
    outer.add_conditional_edges(START, lambda state: [Send("words", {"word": word}) for word in "ab"], ["words"])
    outer.add_node("last", lambda state: words({"word": "last"}))
    outer.add_edge("words", "inner")
    outer.add_edge("inner", "last")
    pipeline: Pipeline[Any] = Pipeline("crashing", data=dict, initial="NEW", final={"DONE"})

    @graph_stage(
        pipeline, outer.compile(name="graph"), on="NEW", to="DONE", input=lambda data: {"said": []}, retry=QUICK
    )  # fmt: skip
    def ended(run: Run[Any], output: Any) -> Any:
        return {**run.data, "said": output["said"], "answers": output["answers"]}

    return pipeline


def test_a_crash_after_any_step_changes_nothing(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, crashing())

    def scenario(drain: Callable[[], Any]) -> None:
        calls.clear()
        pipeline.submit(conn, "a", {})
        for question, answer in (("one?", "approve"), ("two?", "reject")):
            drain()
            (asked,) = outbox.approvals(conn)
            assert asked.question == question, "one question after the other, and none twice"
            outbox.decide(conn, pipeline, "a", answer, by="sarah", question=asked.id)
        drain()
        found = pipeline.get(conn, "a")
        assert found is not None
        assert found.status == "DONE"
        assert (found.data["said"], found.data["answers"]) == (["a", "b", "last"], "approve reject")
        assert len(calls) <= 6, "at most the nodes that were under way are repeated"

    places = crash_everywhere(scenario, pipeline, dsn)
    assert len([place for place in places if "once" in place]) > 8


@pytest.fixture
def gate(conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    conn.execute("CREATE TABLE outbox.gate (opened int)")
    conn.execute("CREATE TABLE outbox.calls (what text)")


def test_what_an_attempt_stores_that_is_not_the_last_is_refused(conn: Conn, dsn: str) -> None:
    """The job is claimed by another attempt while a node runs: its checkpoint is not written, and no other node runs."""
    builder = StateGraph(State)
    calls.clear()

    def loses(state: State) -> State:
        calls.append("loses")
        if len(calls) == 1:
            conn.execute("UPDATE outbox.jobs SET attempt = attempt + 1")
        return {"said": [f"attempt {len(calls)}"]}

    builder.add_sequence([("loses", loses), ("words", lambda state: words({"word": "after"}))])
    builder.add_edge(START, "loses")
    pipeline: Pipeline[Any] = Pipeline("losing", data=dict, initial="NEW", final={"DONE"})

    @graph_stage(pipeline, builder.compile(name="graph"), on="NEW", to="DONE", input=lambda data: {}, retry=QUICK)
    def ended(run: Run[Any], output: Any) -> Any:
        return {**run.data, "said": output["said"]}

    deployed(conn, pipeline).submit(conn, "a", {})
    drain(pipeline, dsn)
    assert calls == ["loses"], "the attempt has ended there"
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints WHERE result #>> '{}' LIKE '%%attempt 1%%'") == 0
    conn.execute("UPDATE outbox.jobs SET owner = NULL, due = true, run_at = now()")
    drain_all(conn, dsn, pipeline)
    assert value(conn, "SELECT metadata ->> 'said' FROM outbox.workflow_states") == '["attempt 2", "after"]'


def test_a_worker_that_has_lost_its_lease_stores_nothing_any_more(conn: Conn, gate: None, spawn: Spawn) -> None:
    from apps.gated import gated

    deployed(conn, gated).submit(conn, "a", {})
    forked.imports("outbox.agents.langgraph")
    worker = ["worker", "--app", "apps.gated:gated", "--lease", "1"]
    zombie = spawn(*worker, env={"GATE": "1", "WHO": "zombie"})
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.calls") == 1, what="the node is under way")
    zombie.freeze()
    spawn(*worker, env={"WHO": "heir"})
    wait_for(lambda: status_of(conn, "a") == "WAITING_FOR_ANSWER", what="the heir asks")
    conn.execute("INSERT INTO outbox.gate VALUES (1)")
    zombie.send(signal.SIGCONT)
    wait_for(lambda: "LeaseLost" in zombie.text() or "was taken away" in zombie.text(), what="the zombie learns of it")
    outbox.approve(conn, gated, "a", by="sarah")
    wait_for(lambda: status_of(conn, "a") == "DONE", what="the graph has ended")
    assert value(conn, "SELECT metadata ->> 'said' FROM outbox.workflow_states") == '["first", "heir", "approve"]'
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints WHERE result #>> '{}' LIKE '%%zombie%%'") == 0
    assert os.environ.get("GATE") is None
