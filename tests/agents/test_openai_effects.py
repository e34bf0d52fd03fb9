"""Tools of the OpenAI Agents SDK with an effect, budgets, and the limits of conversations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psycopg
import pytest
from agents import Agent, Runner, function_tool

import outbox
from kit.openai_models import Script, call, returned
from kit.pipelines import QUICK, Post, deployed, drain, drain_all, one_stage, run_one, status_of, value
from outbox import Backoff, Pipeline, Run, documents
from outbox.agents.openai import (
    Budget,
    BudgetExceeded,
    OutboxRunner,
    Transcript,
    agent_stage,
    durable,
    idempotency_key,
    model,
    tool_policy,
)
from outbox.errors import DefinitionError

Conn = psycopg.Connection[Any]
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def payer(pay: Any, **policy: Any) -> Agent[Any]:
    tool = tool_policy(effect=True, **policy)(function_tool(pay, name_override="pay"))
    return Agent(name="payer", model=Script([call("pay", "c1", cents=5)], "done"), tools=[tool])


async def cut_off(cents: int) -> str:
    """Pays, and then the connection is cut, so the result is unknown."""
    calls.append((cents, idempotency_key()))
    if len(calls) == 1:
        raise ConnectionError("cut off")
    return "paid"


def handler(agent: Agent[Any]) -> Any:
    async def handle(run: Run[Post]) -> Post:
        result = await OutboxRunner.run(agent, "go")
        return Post(content=str(returned(result.to_input_list())["c1"]))

    return handle


def content(conn: Conn) -> str:
    return str(value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states"))


def test_a_tool_that_decides_on_its_own_agent_has_ended_and_is_kept(conn: Conn, dsn: str) -> None:
    @function_tool(needs_approval=True)
    async def charge(cents: int) -> str:
        return "charged"

    clerk = Agent[Any](name="clerk", model=Script([call("charge", "c", cents=5)], "charged"), tools=[charge])

    async def pay(cents: int) -> str:
        result = await Runner.run(clerk, "charge it")
        state = result.to_state()
        state.approve(result.interruptions[0])
        ended = await Runner.run(clerk, state)
        calls.append(cents)
        return str(ended.final_output)

    agent = payer(pay)
    assert isinstance(agent.model, Script)
    failing = iter([None, ConnectionError("cut off")])

    def said(number: int) -> None:
        if error := next(failing, None):
            raise error

    agent.model.said = said
    run_one(conn, dsn, handler(agent))
    assert (status_of(conn, "a"), content(conn), calls) == ("DONE", "charged", [5])


def test_a_call_that_takes_too_long_is_unknown(conn: Conn, dsn: str) -> None:
    async def pay(cents: int) -> str:
        await asyncio.sleep(3600)
        return "never"

    slow = tool_policy(effect=True)(function_tool(pay, timeout=0.05))
    agent = Agent[Any](name="payer", model=Script([call("pay", "c1", cents=5)], "done"), tools=[slow])
    pipeline = deployed(conn, one_stage(handler(agent), retry=QUICK))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert [each.question for each in outbox.approvals(conn)] == ["payer: has this call happened? pay"]


def test_arguments_that_do_not_fit_an_effect_are_told_to_the_model(conn: Conn, dsn: str) -> None:
    async def pay(cents: int) -> str:
        raise AssertionError

    agent = payer(pay)
    agent.model = Script([call("pay", "c1", euros=5)], "done")
    run_one(conn, dsn, handler(agent))
    assert (status_of(conn, "a"), "error" in content(conn)) == ("DONE", True)


def test_arguments_that_postgres_can_not_hold_are_not_shown(conn: Conn, dsn: str) -> None:
    async def pay(memo: str) -> str:
        raise ConnectionError("cut off")

    agent = payer(pay)
    agent.model = Script([call("pay", "c1", memo="\0")], "done")
    pipeline = deployed(conn, one_stage(handler(agent), retry=Backoff(attempts=1)))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    if asked := outbox.approvals(conn):
        assert "about" not in asked[0].data
    else:  # the response itself, with the arguments, can't be kept
        assert "the result of the model of payer can't be kept" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_crash_in_one_of_several_tools_repeats_only_that_one(conn: Conn, dsn: str) -> None:
    @function_tool
    async def one() -> str:
        calls.append("one")
        return "1"

    @function_tool(failure_error_function=None)
    async def two() -> str:
        calls.append("two")
        while not value(conn, "SELECT count(*) FROM outbox.checkpoints WHERE key LIKE '%one%'"):
            await asyncio.sleep(0.01)
        if calls.count("two") == 1:
            raise RuntimeError("crash")
        return "2"

    agent = Agent[Any](name="both", model=Script([call("one", "c0"), call("two", "c1")], "done"), tools=[one, two])
    run_one(conn, dsn, handler(agent))
    assert (content(conn), calls) == ("2", ["one", "two", "two"])


def test_an_attempt_that_runs_out_of_time_is_cancelled_and_the_next_one_goes_on(conn: Conn, dsn: str) -> None:
    @function_tool
    async def stuck() -> str:
        calls.append("stuck")
        if len(calls) == 1:
            await asyncio.sleep(3600)
        return "free"

    agent = Agent[Any](name="late", model=Script([call("stuck", "c1")], "done"), tools=[stuck])
    run_one(conn, dsn, handler(agent), timeout=2)
    assert (content(conn), calls) == ("free", ["stuck", "stuck"])


def talker(turns: int = 30) -> Agent[Any]:
    @function_tool
    def note(n: int) -> int:
        return n

    answers = [*([call("note", f"c{n}", n=n)] for n in range(turns)), "enough"]
    return Agent(name="talker", model=Script(*answers, said=calls.append), tools=[note])


def run_with(conn: Conn, dsn: str, budget: Budget, turns: int = 30, attempts: int = 3) -> str:
    """Runs the agent in attempts that all fail after it."""

    async def handle(run: Run[Post]) -> None:
        with durable(run, budget=budget):
            await OutboxRunner.run(talker(turns), "go", max_turns=None)
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=attempts))
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def test_requests_that_were_kept_cost_an_attempt_nothing(conn: Conn, dsn: str) -> None:
    assert run_with(conn, dsn, Budget(requests=2), turns=1).startswith("ValueError: after the agent")
    assert calls == [1, 2]


def test_the_budget_of_a_workflow_counts_what_was_kept(conn: Conn, dsn: str) -> None:
    told = run_with(conn, dsn, Budget(workflow_requests=4))
    assert told == "the agent has spent its budget: 4 requests in this workflow, of 4"
    assert calls == [1, 2, 3, 4], "the job is dead at once"


def test_a_budget_counts_agents_in_tools(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        main = Agent[Any](
            name="main", model=Script([call("talk", "t", input="x")], "done"), tools=[talker().as_tool("talk", "")]
        )
        with (
            pytest.raises(BudgetExceeded) as caught,
            durable(run, budget=Budget(tokens=250), spent=(5, 0)) as spending,
        ):
            await OutboxRunner.run(main, "go")
        assert (caught.value.limit, spending.requests, spending.workflow_requests) == ("tokens", 5, 10)

    run_one(conn, dsn, handle)
    assert status_of(conn, "a") == "DONE"


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "9"])
def test_a_budget_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="Budget tokens="):
        Budget(tokens=wrong)


def test_a_conversation_that_is_too_long_is_ended_before_the_next_request(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_CONVERSATION", 2_000)
    told = run_with(conn, dsn, Budget())
    assert "the conversation has " in told
    assert "the limit is 2,000" in told
    assert 1 < len(calls) < 30


def test_the_longest_conversation_fits_into_the_data_while_it_waits(conn: Conn, dsn: str) -> None:
    """A RunState has each result several times, in the data of the workflow."""

    @function_tool
    async def read(n: int) -> str:
        return "x" * 50_000

    @function_tool(needs_approval=True)
    async def refund() -> str:
        return "paid"

    reads = [[call("read", f"r{turn}{n}", n=n) for n in range(3)] for turn in range(2)]
    talk = Script(*reads, [call("refund", "c")], "done")
    agent = Agent[Any](name="reader", model=talk, tools=[read, refund])
    pipeline: Pipeline[dict[str, Any]] = Pipeline("cases", initial="NEW", final={"DONE"})

    @agent_stage(pipeline, agent, on="NEW", to="DONE", prompt=lambda case: "go", retry=QUICK)
    async def finished(run: Run[dict[str, Any]], output: str) -> None: ...

    deployed(conn, pipeline)
    pipeline.submit(conn, "a", {})
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING_FOR_APPROVAL"
    kept = value(conn, "SELECT length(metadata::text) FROM outbox.workflow_states")
    assert kept < documents.MAX_BYTES / model.MAX_CONVERSATION * len(json.dumps(talk.inputs[-1]))
    outbox.approve(conn, pipeline, "a", by="sarah")
    drain(pipeline, dsn)
    found = pipeline.get(conn, "a")
    assert found is not None
    assert len(Transcript.model_validate(found.data["transcript"]).messages) == 1 + 6 + 6 + 2 + 1


def test_a_call_that_was_approved_is_not_made_again_by_another_response(conn: Conn, dsn: str) -> None:
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        calls.append(cents)
        return "paid"

    twice = [[call("refund", "c", cents=5)], [call("refund", "c", cents=6)], [call("refund", "c", cents=5)], "done"]
    for number, answers in enumerate((twice, [twice[0], twice[2], "done"])):
        agent = Agent[Any](name="twice", model=Script(*answers), tools=[refund])
        pipeline: Pipeline[dict[str, Any]] = Pipeline(f"cases {number}", initial="NEW", final={"DONE"})

        @agent_stage(pipeline, agent, on="NEW", to="DONE", prompt=lambda case: "go", retry=QUICK)
        async def finished(run: Run[dict[str, Any]], output: str) -> None: ...

        deployed(conn, pipeline)
        pipeline.submit(conn, "a", {})
        drain(pipeline, dsn)
        outbox.approve(conn, pipeline, "a", by="sarah")
        drain_all(conn, dsn, pipeline)
        assert calls == [5]
        calls.clear()
