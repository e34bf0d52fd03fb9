"""Streamed runs of the OpenAI Agents SDK: events reach a function, and a response is kept when it is complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import psycopg
import pytest
from agents import Agent, MaxTurnsExceeded, ModelBehaviorError, RawResponsesStreamEvent, Runner, function_tool

import outbox
from kit.openai_models import Script, call, response, streamed
from kit.pipelines import QUICK, Post, deployed, drain, one_stage, run_one, status_of, value
from outbox import Pipeline, Run
from outbox.agents.openai import (
    Budget,
    BudgetExceeded,
    OutboxRunner,
    agent_stage,
    durable,
    report_progress,
    tool_policy,
)
from outbox.testing import attempt

Conn = psycopg.Connection[Any]
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@function_tool
async def look_up(order: str) -> str:
    calls.append(order)
    return order.upper()


TWO = [call("look_up", "c1", order="a"), call("look_up", "c2", order="b")]
ITEMS = ["tool_called", "tool_called", "tool_output", "tool_output", "message_output_created"]


def agent_of(*answers: Any, **options: Any) -> Agent[Any]:
    model = Script(*answers, said=lambda number: calls.append(f"request {number}"))
    return Agent(**{"name": "searcher", "model": model, "tools": [look_up], **options})


class Heard:
    """A handler of events. Its text is what the model has streamed."""

    def __init__(self) -> None:
        self.raw: list[str] = []
        self.items: list[str] = []
        self.text = ""

    async def __call__(self, ctx: Any, events: AsyncIterator[Any]) -> None:
        async for event in events:
            if isinstance(event, RawResponsesStreamEvent):
                self.raw.append(event.data.type.removeprefix("response."))
                self.text += getattr(event.data, "delta", "")
            elif event.type == "run_item_stream_event":
                self.items.append(event.name)


def handling(agent: Agent[Any], **options: Any) -> Any:
    async def handle(run: Run[Post]) -> Post:
        result = await OutboxRunner.run(agent, "find", **options)
        return Post(
            content=str((result.final_output, result.to_input_list(), result.context_wrapper.usage.total_tokens))
        )

    return one_stage(handle)


def test_a_response_that_is_kept_is_not_streamed_again() -> None:
    first, second = Heard(), Heard()
    made = attempt(handling(agent_of(TWO, "both found"), event_stream_handler=first), "work", Post())
    assert calls == ["request 1", "a", "b", "request 2"]
    assert (first.text, sorted(first.items)) == ("both found", sorted(ITEMS))
    assert (first.raw.count("completed"), first.raw[-1]) == (2, "completed")
    again = attempt(handling(agent_of(), event_stream_handler=second), "work", Post(), attempt=2, kept=made.kept)
    assert (second.raw, sorted(second.items)) == (["completed", "completed"], sorted(ITEMS))
    assert (again.data, len(calls)) == (made.data, 4)


def test_what_is_kept_is_the_same_with_and_without_a_stream() -> None:
    agent = agent_of(TWO, "found")
    plain, streaming = attempt(handling(agent), "work", Post()), handling(agent, event_stream_handler=Heard())
    made = attempt(streaming, "work", Post())
    assert (made.data, made.kept.keys()) == (plain.data, plain.kept.keys())
    calls.clear()
    for pipeline, kept in ((streaming, plain.kept), (handling(agent), made.kept)):
        assert attempt(pipeline, "work", Post(), attempt=2, kept=kept).data == plain.data
    assert calls == []


def test_outside_of_handlers_events_are_those_of_the_sdk() -> None:
    async def run() -> tuple[Any, Any]:
        ours, theirs = Heard(), Heard()
        mine = await OutboxRunner.run(agent_of(TWO, "found"), "find", event_stream_handler=ours)
        await theirs(None, Runner.run_streamed(agent_of(TWO, "found"), "find").stream_events())
        assert (ours.raw, ours.items) == (theirs.raw, theirs.items)
        return mine.final_output, mine.last_agent.name

    assert asyncio.run(run()) == ("found", "searcher")


class Gated(Script):
    """Waits after the first event of a response until it was heard."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.heard = asyncio.Event()
        self.is_closed = False

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            for event in streamed(response(self.answers[0])):
                yield event
                async with asyncio.timeout(30):
                    await self.heard.wait()
        finally:
            self.is_closed = True


def test_events_come_while_the_model_speaks() -> None:
    model = Gated("slowly")

    async def hear(ctx: Any, events: AsyncIterator[Any]) -> None:
        async for event in events:
            if isinstance(event, RawResponsesStreamEvent):
                model.heard.set()

    assert "slowly" in attempt(handling(agent_of(model=model), event_stream_handler=hear), "work", Post()).data.content


def test_a_stream_that_is_cut_off_is_not_kept_and_the_next_attempt_makes_the_request(conn: Conn, dsn: str) -> None:
    class Cut(Script):
        async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            stream = super().stream_response(*args, **kwargs)
            events = [event async for event in stream]
            for event in events[: 2 if len(self.inputs) == 1 else None]:
                yield event
            if len(self.inputs) == 2:
                raise ConnectionError("cut off")

    told: list[str] = []

    async def handle(run: Run[Post]) -> Post:
        heard = Heard()
        try:
            await OutboxRunner.run(agent, "find", event_stream_handler=heard)
        except (ModelBehaviorError, ConnectionError) as error:
            told.append(f"{type(error).__name__} after {heard.text}")
            raise
        return Post(content=heard.text)

    agent = Agent[Any](name="cut", model=Cut("some words"))
    run_one(conn, dsn, handle)
    assert told == ["ModelBehaviorError after some ", "ConnectionError after some words"]
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "some words"
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints") == 1


def test_events_reach_progress() -> None:
    agent = agent_of(TWO, "both found")
    made = attempt(handling(agent, event_stream_handler=report_progress), "work", Post())
    assert made.progress == "step 2: answers"
    again = attempt(handling(agent, event_stream_handler=report_progress), "work", Post(), attempt=2, kept=made.kept)
    assert again.progress == "step 1: has the result of look_up", "of the second response nothing is streamed"


async def closing(ctx: Any, events: Any) -> None:
    async with aclosing(events):
        async for _ in events:
            return


async def leaving(ctx: Any, events: Any) -> None:
    async for _ in events:
        return


@pytest.mark.parametrize("handler", [closing, leaving])
def test_a_handler_may_stop_listening(handler: Any) -> None:
    made = attempt(handling(agent_of(TWO, "found"), event_stream_handler=handler), "work", Post())
    assert "found" in made.data.content
    with pytest.raises(MaxTurnsExceeded):
        attempt(handling(agent_of(TWO, "found"), event_stream_handler=handler, max_turns=1), "work", Post())


def test_a_handler_that_fails_ends_the_attempt_but_not_an_effect_that_is_under_way(conn: Conn, dsn: str) -> None:
    failed = asyncio.Event()

    @tool_policy(effect=True)
    @function_tool
    async def pay(cents: int) -> str:
        calls.append(cents)
        async with asyncio.timeout(30):
            await failed.wait()
        await asyncio.sleep(0.05)
        return "paid"

    async def hear(ctx: Any, events: AsyncIterator[Any]) -> None:
        async for event in events:
            if event.type == "run_item_stream_event" and not failed.is_set():
                while not calls:
                    await asyncio.sleep(0)
                failed.set()
                raise RuntimeError("the listener is gone")

    async def handle(run: Run[Post]) -> None:
        agent = Agent[Any](name="payer", model=Script([call("pay", "c1", cents=5)], "done"), tools=[pay])
        await OutboxRunner.run(agent, "go", event_stream_handler=hear)

    run_one(conn, dsn, handle)
    assert (calls, status_of(conn, "a"), outbox.approvals(conn)) == ([5], "DONE", [])


def test_our_own_errors_pass_through_a_stream() -> None:
    @function_tool
    async def refuse() -> str:
        raise outbox.Reject("we don't do that")

    agent = agent_of([call("refuse", "c1")], "ok", tools=[refuse])
    with pytest.raises(outbox.Reject, match="we don't do that"):
        attempt(handling(agent, event_stream_handler=Heard()), "work", Post())

    async def handle(run: Run[Post]) -> None:
        with durable(run, budget=Budget(requests=1)):
            await OutboxRunner.run(agent_of(TWO, "found"), "find", event_stream_handler=Heard())

    with pytest.raises(BudgetExceeded):
        attempt(one_stage(handle), "work", Post())


def test_when_an_attempt_ends_the_model_s_stream_is_closed() -> None:
    model = Gated("never said")

    async def hear(ctx: Any, events: AsyncIterator[Any]) -> None:
        async for event in events:
            if isinstance(event, RawResponsesStreamEvent):
                raise TimeoutError

    async def handle(run: Run[Post]) -> None:
        with pytest.raises(TimeoutError):
            await OutboxRunner.run(Agent(name="late", model=model), "go", event_stream_handler=hear)
        assert model.is_closed

    attempt(one_stage(handle), "work", Post())


def test_a_stage_streams_what_is_said_before_and_after_people_are_asked(conn: Conn, dsn: str) -> None:
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        calls.append(cents)
        return "paid"

    heard = Heard()
    pipeline: Pipeline[dict[str, Any]] = Pipeline("cases", initial="NEW", final={"DONE"})
    agent = Agent[Any](name="support", model=Script([call("refund", "c", cents=5)], "done"), tools=[refund])

    @agent_stage(pipeline, agent, on="NEW", to="DONE", prompt=lambda _: "go", event_stream_handler=heard, retry=QUICK)
    async def answered(run: Run[dict[str, Any]], output: str) -> dict[str, Any]:
        return {**run.data, "answer": output}

    deployed(conn, pipeline).submit(conn, "a", {})
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), heard.items, calls) == ("WAITING_FOR_APPROVAL", ["tool_called"], [])
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    assert (status_of(conn, "a"), calls, heard.text) == ("DONE", [5], "done")
    assert heard.items[1:] == ["tool_output", "message_output_created"]
