"""A graph of LangGraph as a stage: it runs, asks, goes on, and repeats no node that has ended."""

from __future__ import annotations

import asyncio
import json
import operator
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel

import outbox
from kit.pipelines import QUICK, deployed, drain, drain_all, status_of, value
from kit.servers import DEADLINE
from kit.waits import put_off
from outbox import Backoff, DefinitionError, Pipeline, Run
from outbox.agents.langgraph import Thread, graph_stage

Conn = psycopg.Connection[Any]
HOUR = timedelta(hours=1)
calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


class Case(BaseModel):
    prompt: str = "refund me"
    said: list[str] = []
    reply: Any = None
    thread: Thread = Thread()


class State(TypedDict, total=False):
    prompt: str
    said: Annotated[list[str], operator.add]


def say(word: str) -> Any:
    def node(state: State) -> State:
        calls.append(word)
        return {"said": [word]}

    return node


def asking(word: str, value: Any = "Go on?") -> Any:
    def node(state: State) -> State:
        calls.append(f"{word} begins")
        answer = interrupt(value)
        calls.append(f"{word} ends")
        return {"said": [f"{word}: {answer['decision']} by {answer['by']}" if "by" in answer else str(answer)]}

    return node


def chain(**nodes: Any) -> Any:
    builder = StateGraph(State)
    before = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    builder.add_edge(before, END)
    return builder.compile(name="support")


def beside(**nodes: Any) -> Any:
    """All nodes in one superstep, and one that comes after them."""
    builder = StateGraph(State)
    builder.add_node("last", say("last"))
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(START, name)
    builder.add_edge(list(nodes), "last")
    return builder.compile(name="support")


def stored(conn: Conn) -> set[str]:
    """Returns what nodes have said that is stored, and is in no checkpoint of the graph yet."""
    entries = conn.execute("SELECT result #>> '{}' FROM outbox.checkpoints ORDER BY key").fetchall()
    writes = [each for (entry,) in entries for each in json.loads(entry) if "write" in each]
    return {word for each in writes for _, channel, words in each["values"] if channel == "said" for word in words}


async def until(there: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not there():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


def cases(graph: Any, data: Any = Case, retry: Backoff = QUICK, **options: Any) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("cases", data=data, initial="NEW", final={"DONE"})
    options = {"signal_into": "reply", "input": lambda case: {"prompt": case.prompt}, **options}

    @graph_stage(pipeline, graph, on={"NEW", "MORE"}, to="DONE", retry=retry, **options)
    async def ended(run: Run[Case], output: Any) -> Case:
        return run.data.model_copy(update={"said": output["said"]})

    pipeline.allow("WAITING_FOR_ANSWER", to="MORE")
    pipeline.allow("ANSWERED", to="MORE")
    return pipeline


def begun(conn: Conn, dsn: str, graph: Any, **options: Any) -> Pipeline[Any]:
    """Deploys, submits "a", and runs it until it asks or ends."""
    pipeline = deployed(conn, cases(graph, **options))
    pipeline.submit(conn, "a", Case())
    drain(pipeline, dsn)
    return pipeline


def said(conn: Conn, pipeline: Pipeline[Any]) -> list[str]:
    found = pipeline.get(conn, "a")
    assert found is not None
    return found.data.said  # type: ignore[no-any-return]


def error(conn: Conn) -> str:
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def test_a_graph_that_asks_nobody_ends(conn: Conn, dsn: str) -> None:
    async def later(state: State) -> State:
        calls.append("later")
        return {"said": ["later"]}

    pipeline = begun(conn, dsn, chain(first=say("first"), later=later))
    assert (status_of(conn, "a"), said(conn, pipeline), calls) == ("DONE", ["first", "later"], ["first", "later"])


def test_a_failed_node_is_tried_again_and_none_before_it(conn: Conn, dsn: str) -> None:
    def fails(state: State) -> State:
        calls.append("fails")
        if calls.count("fails") < 3:
            raise ConnectionError("down")
        return {"said": ["at last"]}

    pipeline = deployed(conn, cases(chain(first=say("first"), fails=fails, last=say("last"))))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert (status_of(conn, "a"), said(conn, pipeline)) == ("DONE", ["first", "at last", "last"])
    assert calls == ["first", "fails", "fails", "fails", "last"]


def test_a_branch_that_has_ended_is_not_repeated_when_another_fails(conn: Conn, dsn: str) -> None:
    async def fails(state: State) -> State:
        calls.append("fails")
        if calls.count("fails") == 1:
            await until(lambda: stored(conn) == {"quick"})
            raise ConnectionError("down")
        return {"said": ["at last"]}

    pipeline = deployed(conn, cases(beside(fails=fails, quick=say("quick"))))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert said(conn, pipeline) == ["at last", "quick", "last"]
    assert sorted(calls) == ["fails", "fails", "last", "quick"]


def test_an_interrupt_is_a_question_and_its_answer_is_what_it_returns(conn: Conn, dsn: str) -> None:
    asked = {"question": "Refund?", "options": ["yes", "no"], "about": {"cents": 900}, "assignee": "sarah"}
    pipeline = begun(conn, dsn, chain(first=say("first"), ask=asking("ask", asked), last=say("last")))
    assert status_of(conn, "a") == "WAITING_FOR_ANSWER"
    (found,) = outbox.approvals(conn)
    assert (found.question, sorted(found.options), found.data) == ("Refund?", ["no", "yes"], {"cents": 900})
    outbox.decide(conn, pipeline, "a", "yes", by="sarah", reason="fair")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), said(conn, pipeline)) == ("DONE", ["first", "ask: yes by sarah", "last"])
    assert calls == ["first", "ask begins", "ask begins", "ask ends", "last"]


def test_a_text_is_asked_as_it_is_and_other_values_are_what_it_is_about(conn: Conn, dsn: str) -> None:
    pipeline = begun(conn, dsn, chain(ask=asking("ask", "Schöne Grüße?\n☃"), more=asking("more", ["a", {"b": 1}])))
    (found,) = outbox.approvals(conn)
    assert (found.question, sorted(found.options)) == ("Schöne Grüße?\n☃", ["approve", "reject"])
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    (found,) = outbox.approvals(conn)
    assert found.data == ["a", {"b": 1}]
    outbox.decide(conn, pipeline, "a", "reject", by="sarah")
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["ask: approve by eva", "more: reject by sarah"]


def test_a_node_that_asks_twice_gets_each_answer_once(conn: Conn, dsn: str) -> None:
    def twice(state: State) -> State:
        return {"said": [interrupt("first?")["by"], interrupt("second?")["by"]]}

    pipeline = begun(conn, dsn, chain(twice=twice))
    for name in ("eva", "sarah"):
        (found,) = outbox.approvals(conn)
        outbox.approve(conn, pipeline, "a", by=name, question=found.id)
        drain(pipeline, dsn)
    assert (status_of(conn, "a"), said(conn, pipeline)) == ("DONE", ["eva", "sarah"])


def test_interrupts_at_once_are_questions_of_one_wait(conn: Conn, dsn: str) -> None:
    pipeline = begun(conn, dsn, beside(a=asking("a", "A?"), b=asking("b", "B?"), c=say("c")))
    asked = {each.question: each.id for each in outbox.approvals(conn)}
    assert set(asked) == {"A?", "B?"}
    outbox.approve(conn, pipeline, "a", by="eva", question=asked["B?"])
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING_FOR_ANSWER", "the other is open"
    outbox.decide(conn, pipeline, "a", "reject", by="sarah", question=asked["A?"])
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["a: reject by sarah", "b: approve by eva", "c", "last"]
    assert calls.count("c") == 1


def test_after_the_deadline_nobody_has_decided(conn: Conn, dsn: str) -> None:
    def ask(state: State) -> State:
        answer = interrupt("Go on?")
        return {"said": [f"{answer['ended']} {answer['decision']}"]}

    pipeline = begun(conn, dsn, chain(ask=ask), deadline=HOUR)
    put_off(conn, 7200)
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["deadline None"]


def test_a_status_that_is_set_by_hand_answers_nothing(conn: Conn, dsn: str) -> None:
    def ask(state: State) -> State:
        answer = interrupt("Go on?")
        return {"said": [f"{answer['ended']} {answer['decision']}"]}

    pipeline = begun(conn, dsn, chain(ask=ask))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ANSWERED'")
    drain(pipeline, dsn)
    assert "approve" not in said(conn, pipeline)[0]


def test_a_signal_is_what_an_interrupt_returns(conn: Conn, dsn: str) -> None:
    pipeline = begun(conn, dsn, beside(pay=asking("pay", {"signal": "paid"}), ask=asking("ask"), c=say("c")))
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING_FOR_ANSWER", "the questions first, then the signal"
    outbox.signal(conn, pipeline, "a", "paid", {"cents": 900})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls.count("c")) == ("DONE", 1)
    assert said(conn, pipeline) == ["ask: approve by eva", "c", "{'cents': 900}", "last"]


def test_a_signal_that_does_not_come_is_none(conn: Conn, dsn: str) -> None:
    def pay(state: State) -> State:
        return {"said": [str(interrupt({"signal": "paid", "timeout": HOUR}))]}

    pipeline = begun(conn, dsn, chain(pay=pay))
    put_off(conn, 7200)
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["None"]


def test_answers_may_be_made_to_what_a_graph_expects(conn: Conn, dsn: str) -> None:
    def ask(state: State) -> State:
        return {"said": [interrupt({"action": "refund", "cents": 9})]}

    pipeline = begun(
        conn, dsn, chain(ask=ask),
        ask=lambda it: {"question": it["action"], "about": {"cents": it["cents"]}, "options": ["ok"]},
        resume=lambda it, answer: f"{it['action']} {answer.about['cents']} {answer.decision}",
    )  # fmt: skip
    outbox.decide(conn, pipeline, "a", "ok", by="eva", about={"cents": 5})
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["refund 5 ok"]


@pytest.mark.parametrize("question", ["How much?", "?" * 10_000])
def test_an_answer_that_does_not_fit_is_asked_about_again(conn: Conn, dsn: str, question: str) -> None:
    class Amount(BaseModel):
        cents: int

    def ask(state: State) -> State:
        amount = interrupt({"question": question, "about": {"cents": 0}}, response_schema=Amount)
        return {"said": [str(amount.cents)]}

    pipeline = begun(conn, dsn, chain(ask=ask), resume=lambda it, answer: answer.about)
    outbox.approve(conn, pipeline, "a", by="eva", about={"cents": "much"})
    drain(pipeline, dsn)
    (found,) = outbox.approvals(conn)
    assert found.question.startswith(f"{question}\nThe answer before doesn't fit: "[:10_000])
    outbox.approve(conn, pipeline, "a", by="eva", about={"cents": 7})
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["7"]


def test_a_subgraph_asks_and_goes_on_where_it_was(conn: Conn, dsn: str) -> None:
    inner = chain(one=say("one"), ask=asking("ask"), two=say("two"))
    pipeline = begun(conn, dsn, chain(first=say("first"), inner=inner, last=say("last")))
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    assert calls == ["first", "one", "ask begins", "ask begins", "ask ends", "two", "last"]


def test_a_plain_node_may_run_a_subgraph(conn: Conn, dsn: str) -> None:
    inner = chain(one=say("one"), ask=asking("ask"))

    def node(state: State) -> State:
        return {"said": inner.invoke({"said": []})["said"]}

    pipeline = begun(conn, dsn, chain(node=node, last=say("last")))
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert (said(conn, pipeline), calls.count("one")) == (["one", "ask: approve by eva", "last"], 1)


def test_sends_are_tasks_of_their_own(conn: Conn, dsn: str) -> None:
    async def work(state: dict[str, Any]) -> State:
        calls.append(state["part"])
        if state["part"] == "b" and calls.count("b") == 1:
            await until(lambda: stored(conn) == {"a", "c"})
            raise ConnectionError("down")
        return {"said": [state["part"]]}

    builder = StateGraph(State)
    builder.add_node("work", work)
    builder.add_conditional_edges(START, lambda state: [Send("work", {"part": part}) for part in "abc"], ["work"])
    pipeline = deployed(conn, cases(builder.compile(name="support")))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert (status_of(conn, "a"), said(conn, pipeline)) == ("DONE", ["a", "b", "c"])
    assert sorted(calls) == ["a", "b", "b", "c"]


def test_nodes_are_retried_and_routed_as_the_graph_says(conn: Conn, dsn: str) -> None:
    def shaky(state: State) -> Command[Any]:
        calls.append("shaky")
        if calls.count("shaky") < 3:
            raise ConnectionError("down")
        return Command(update={"said": ["shaky"]}, goto="last")

    builder = StateGraph(State)
    builder.add_node("shaky", shaky, retry_policy=RetryPolicy(initial_interval=0.001, max_attempts=3))
    builder.add_node("last", say("last"))
    builder.add_edge(START, "shaky")
    pipeline = begun(conn, dsn, builder.compile(name="support"))
    assert said(conn, pipeline) == ["shaky", "last"]
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 2


def test_a_workflow_that_comes_again_goes_on_with_its_state(conn: Conn, dsn: str) -> None:
    pipeline = begun(conn, dsn, chain(first=say("first"), ask=asking("ask")))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MORE'")
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["first", "first", "ask: approve by eva"], "the input is new, the list is the same"


def test_the_output_is_that_of_the_output_schema(conn: Conn, dsn: str) -> None:
    class Output(TypedDict):
        said: list[str]

    builder = StateGraph(State, output_schema=Output).add_sequence([("a", say("a")), ("quiet", lambda state: {})])
    builder.add_edge(START, "a")
    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})
    outputs: list[Any] = []

    @graph_stage(
        pipeline, builder.compile(name="support"), on="NEW", to="DONE", input=lambda case: {"prompt": "-"}, retry=QUICK
    )
    async def ended(run: Run[Case], output: Any) -> None:
        outputs.append(output)
        if len(outputs) == 1:
            raise ConnectionError("cut off")

    deployed(conn, pipeline).submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert outputs == [{"said": ["a"]}, {"said": ["a"]}]


def test_a_graph_that_never_ends_is_ended_at_its_recursion_limit(conn: Conn, dsn: str) -> None:
    builder = StateGraph(State).add_node("again", say("again")).add_edge(START, "again").add_edge("again", "again")
    begun(conn, dsn, builder.compile(name="support"), config={"recursion_limit": 5})
    assert "Recursion limit of 5 reached" in error(conn)
    assert calls == ["again"] * 5, "another attempt would go on"


def test_functions_of_the_functional_api_are_kept(conn: Conn, dsn: str) -> None:
    @task
    def write(text: str) -> str:
        calls.append(f"write {text}")
        return text.upper()

    @entrypoint()
    def flow(given: dict[str, Any]) -> dict[str, Any]:
        one = write("one").result()
        answer = interrupt("Go on?")
        return {"said": [one, answer["by"], write("two").result()]}

    pipeline = begun(conn, dsn, flow)
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert (said(conn, pipeline), calls) == (["ONE", "eva", "TWO"], ["write one", "write two"])


def test_what_the_graph_is_at_is_reported(conn: Conn, dsn: str) -> None:
    seen: list[Any] = []

    def look(state: State) -> State:
        get_stream_writer()("checking 3 of 10")
        return {"said": []}

    pipeline = cases(chain(look=look))
    from outbox.definition.run import Run as Given

    report = Given.progress

    def progress(self: Any, text: str) -> None:
        seen.append(text)
        report(self, text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Given, "progress", progress)
        deployed(conn, pipeline).submit(conn, "a", Case())
        drain(pipeline, dsn)
    assert seen == ["look", "checking 3 of 10"]


def test_what_the_graph_streams_reaches_a_function_and_a_node_that_was_kept_streams_nothing(
    conn: Conn, dsn: str
) -> None:
    heard: list[list[Any]] = []

    async def hear(run: Run[Case], events: Any) -> None:
        heard.append([chunk async for _, _, chunk in events])

    def fails_once(state: State) -> State:
        get_stream_writer()("half")
        if len(heard) == 0:
            heard.append([])
            raise ConnectionError("down")
        return {"said": ["second"]}

    pipeline = cases(
        chain(first=say("first"), second=fails_once), event_stream_handler=hear, stream_mode=["updates", "custom"]
    )
    deployed(conn, pipeline).submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert heard == [[], ["half", {"second": {"said": ["second"]}}]]
    assert (said(conn, pipeline), calls) == (["first", "second"], ["first"])


def test_a_function_that_stops_listening_does_not_stop_the_graph(conn: Conn, dsn: str) -> None:
    async def hear(run: Run[Case], events: Any) -> None:
        async for _ in events:
            return

    pipeline = cases(chain(first=say("first"), second=say("second")), event_stream_handler=hear)
    deployed(conn, pipeline).submit(conn, "a", Case())
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["first", "second"]


def test_context_and_config_come_from_the_stage(conn: Conn, dsn: str) -> None:
    def look(state: State, runtime: Runtime[str]) -> State:
        return {"said": [runtime.context]}

    builder = StateGraph(State, context_schema=str)
    builder.add_node("look", look)
    builder.add_edge(START, "look")
    pipeline = begun(
        conn, dsn, builder.compile(name="support"), context=lambda run: run.entity_id, config={"recursion_limit": 7}
    )
    assert said(conn, pipeline) == ["a"]


def test_a_call_in_a_node_that_must_not_happen_twice_is_an_effect(conn: Conn, dsn: str) -> None:
    async def charge(cents: int) -> str:
        calls.append(f"charge {cents}")
        return "receipt"

    async def pay(state: State, runtime: Runtime[Run[Case]]) -> State:
        receipt = await runtime.context.effect("charge", charge, 9)
        calls.append("pay")
        if calls.count("pay") == 1:
            raise ConnectionError("down")
        return {"said": [receipt]}

    builder = StateGraph(State, context_schema=Run)
    builder.add_node("pay", pay)
    builder.add_edge(START, "pay")
    pipeline = deployed(conn, cases(builder.compile(name="support"), context=lambda run: run))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert (said(conn, pipeline), calls) == (["receipt"], ["charge 9", "pay", "pay"])


def test_a_node_that_is_gone_is_said_and_nothing_is_skipped(conn: Conn, dsn: str) -> None:
    begun(conn, dsn, chain(first=say("first"), ask=asking("ask"), last=say("last")))
    changed = deployed(conn, cases(chain(first=say("first"), question=asking("question"), last=say("last"))))
    outbox.approve(conn, changed, "a", by="eva")
    calls.clear()
    drain_all(conn, dsn, changed)
    assert (status_of(conn, "a"), calls) == ("ANSWERED", [])
    assert "the node ask is next, but the graph doesn't have it any more" in error(conn)
    back = deployed(conn, cases(chain(first=say("first"), ask=asking("ask"), more=say("more"), last=say("last"))))
    outbox.retry(conn, back, "a", by="eva")
    drain_all(conn, dsn, back)
    assert said(conn, back) == ["first", "ask: approve by eva", "more", "last"]


def test_a_graph_without_the_node_begins_again_with_new_input(conn: Conn, dsn: str) -> None:
    begun(conn, dsn, chain(first=say("first"), ask=asking("ask")))
    changed = deployed(conn, cases(chain(first=say("first"), other=say("other"))))
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MORE'")
    drain(changed, dsn)
    assert (status_of(conn, "a"), said(conn, changed)) == ("DONE", ["first", "first", "other"])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"question": "Go?", "optoins": ["yes"]}, "no parameter optoins"),
        ({"question": "Go?", "options": []}, "options"),
        ({"question": "Go?", "options": 7}, "can't be asked"),
        ({"question": "Go?", "options": "yes"}, "a list of answers"),
        ({"question": "Go?", "options": {"yes": "DONE"}}, "a list of answers"),
        ({"question": "x\0"}, "question"),
        ({"question": 7}, "question"),
        ({"question": "Go?", "about": float("nan")}, "about"),
        ({"question": "Go?", "name": "mine"}, "no parameter name"),
        ({"signal": "paid", "then": "DONE"}, "no parameter then"),
        ({"signal": ""}, "name"),
        ({"signal": "paid", "timeout": 7}, "timeout"),
    ],
)
def test_what_can_not_be_asked_is_said(conn: Conn, dsn: str, given: Any, why: str) -> None:
    begun(conn, dsn, chain(ask=asking("ask", given)))
    assert why in error(conn)
    assert (status_of(conn, "a"), calls) == ("NEW", ["ask begins"])


def test_a_signal_without_a_field_for_its_payload_is_said(conn: Conn, dsn: str) -> None:
    begun(conn, dsn, chain(ask=asking("ask", {"signal": "paid"})), signal_into=None)
    assert "give graph_stage signal_into=" in error(conn)


def test_more_interrupts_than_a_wait_may_ask_are_asked_after_each_other(conn: Conn, dsn: str) -> None:
    def ask(state: dict[str, Any]) -> State:
        return {"said": [interrupt(f"{state['number']}?")["by"]]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_conditional_edges(START, lambda state: [Send("ask", {"number": n}) for n in range(101)], ["ask"])
    pipeline = begun(conn, dsn, builder.compile(name="support"))
    for number in (100, 1):
        asked = outbox.approvals(conn, limit=200)
        assert len(asked) == number
        for each in asked:
            outbox.approve(conn, pipeline, "a", by="eva", question=each.id)
        drain(pipeline, dsn)
    assert (status_of(conn, "a"), said(conn, pipeline)) == ("DONE", ["eva"] * 101)


def test_a_node_that_runs_out_of_time_is_repeated_and_none_before_it(conn: Conn, dsn: str) -> None:
    async def slow(state: State) -> State:
        calls.append("slow")
        if calls.count("slow") == 1:
            await asyncio.sleep(DEADLINE)
        return {"said": ["slow"]}

    pipeline = deployed(conn, cases(chain(first=say("first"), slow=slow), timeout=2))
    pipeline.submit(conn, "a", Case())
    drain_all(conn, dsn, pipeline)
    assert (said(conn, pipeline), calls) == (["first", "slow"], ["first", "slow", "slow"])


@pytest.mark.parametrize("part", ["a lock", "a class that no schema names"])
def test_state_that_can_not_be_stored_is_said_with_its_node_and_channel(conn: Conn, dsn: str, part: str) -> None:
    class Unknown(BaseModel):
        pass

    def bad(state: State) -> State:
        calls.append("bad")
        return {"said": [threading.Lock() if part == "a lock" else Unknown()]}  # type: ignore[list-item]

    begun(conn, dsn, chain(first=say("first"), bad=bad, last=say("last")))
    assert error(conn).startswith("node bad, channel said: ")
    assert calls == ["first", "bad"], "once, and nothing after it"


def test_the_graph_of_the_docs_runs(conn: Conn, dsn: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^## I have a graph in LangGraph$.*?^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    module = ModuleType("letters")
    sys.modules["letters"] = module
    exec(compile(code, "agents.md", "exec"), module.__dict__)
    pipeline = deployed(conn, module.letters)
    pipeline.submit(conn, "a", {"topic": "owls"})
    drain(pipeline, dsn)
    outbox.decide(conn, pipeline, "a", "yes", by="eva", about="All about owls, and larks")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "SENT"
    found = "SELECT convert_from(outbox.blob(metadata -> 'thread' -> 'state' ->> 'sha256'), 'UTF8') FROM outbox.workflow_states"
    assert "and larks" in value(conn, found)


class Unnamed(BaseModel):
    cents: int


def test_a_class_that_no_schema_names_may_be_named(conn: Conn, dsn: str) -> None:
    def pays(state: State) -> State:
        return {"said": [Unnamed(cents=9)]}  # type: ignore[list-item]

    def says(state: State) -> State:
        (given,) = state["said"]
        assert isinstance(given, Unnamed)
        return {"said": [interrupt("Go on?")["by"]]}

    def text(case: Any) -> list[str]:
        return [str(each) for each in case]

    pipeline: Pipeline[Any] = Pipeline("cases", data=Case, initial="NEW", final={"DONE"})

    @graph_stage(pipeline, chain(pays=pays, says=says), on="NEW", to="DONE", input=lambda case: {}, types=[Unnamed])
    def ended(run: Run[Case], output: Any) -> Case:
        return run.data.model_copy(update={"said": text(output["said"])})

    deployed(conn, pipeline).submit(conn, "a", Case())
    drain(pipeline, dsn)
    outbox.approve(conn, pipeline, "a", by="eva")
    drain(pipeline, dsn)
    assert said(conn, pipeline) == ["cents=9", "eva"]


def test_what_a_graph_can_not_be_is_refused_when_it_is_defined() -> None:
    builder = StateGraph(State)
    builder.add_node("a", say("a"))
    builder.add_edge(START, "a")
    with pytest.raises(DefinitionError, match="without a checkpointer"):
        cases(builder.compile(checkpointer=InMemorySaver()))
    with pytest.raises(DefinitionError, match="breakpoints"):
        cases(builder.compile(interrupt_before=["a"]))
    with pytest.raises(DefinitionError, match="batch"):
        cases(builder.compile(), batch=10)
    with pytest.raises(DefinitionError, match="thread"):
        cases(builder.compile(), thread="nothing")
    with pytest.raises(DefinitionError, match="types="):
        cases(builder.compile(), types=[int])
