"""Agents of the OpenAI Agents SDK in handlers: what they do is kept, and behaves as without Outbox."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from agents import (
    Agent,
    AgentHooks,
    FunctionTool,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelRetrySettings,
    ModelSettings,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunContextWrapper,
    Runner,
    RunState,
    SQLiteSession,
    function_tool,
    handoff,
    input_guardrail,
    output_guardrail,
    tool_input_guardrail,
)
from agents.mcp import MCPServerStdio
from agents.run import get_default_agent_runner, set_default_agent_runner
from agents.sandbox import SandboxAgent
from agents.tool_guardrails import ToolGuardrailFunctionOutput, ToolInputGuardrailData
from pydantic import BaseModel

import outbox
from kit.openai_models import Script, call, returned
from kit.pipelines import Post, deployed, drain_all, one_stage, run_one, value
from outbox import Backoff, Retry, Run
from outbox.agents.openai import OutboxRunner, durable, idempotency_key, tool_policy
from outbox.errors import DefinitionError, HandlerError
from outbox.testing import attempt

Conn = psycopg.Connection[Any]
APPS = Path(__file__).parents[1] / "apps"
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@function_tool
async def look_up(order: str) -> str:
    calls.append(order)
    await asyncio.sleep(0.01 if order == "a" else 0)
    return order.upper()


TWO = [call("look_up", "c1", order="a"), call("look_up", "c2", order="b")]


def agent_of(*answers: Any, **options: Any) -> Agent[Any]:
    model = Script(*answers, said=lambda number: calls.append(f"request {number}"))
    return Agent(**{"name": "searcher", "model": model, "tools": [look_up], **options})


def twice(work: Callable[[], Awaitable[Any]]) -> Any:
    """Returns what the work comes to in a handler. The second attempt comes to the same, and calls nothing."""
    found: list[Any] = []

    async def handle(run: Run[Post]) -> None:
        found.append(await work())

    pipeline = one_stage(handle)
    made = attempt(pipeline, "work", Post())
    before = list(calls)
    attempt(pipeline, "work", Post(), attempt=2, kept=made.kept)
    assert calls == before, "everything was kept"
    assert found[0] == found[1]
    return found[0]


def handled(agent: Agent[Any], prompt: Any = "find", **options: Any) -> Any:
    """Returns the output and the conversation of an agent in a handler."""

    async def work() -> Any:
        result = await OutboxRunner.run(agent, prompt, **options)
        return result.final_output, result.to_input_list()

    return twice(work)


def failing(conn: Conn, dsn: str, agent: Agent[Any], attempts: int = 1, **options: Any) -> str:
    """Returns the error with which the job of an agent is dead."""

    async def handle(run: Run[Post]) -> None:
        await OutboxRunner.run(agent, "find", **options)

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=attempts))
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def plain(agent: Agent[Any], prompt: Any = "find", **options: Any) -> Any:
    result = asyncio.run(Runner.run(agent, prompt, **options))
    calls.clear()
    return result.final_output, result.to_input_list()


def test_requests_and_calls_are_made_once_over_all_attempts(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> Post:
        result = await OutboxRunner.run(agent_of(TWO, "found"), "find")
        if run.attempt < 3:
            raise ValueError("after the agent")
        return Post(content=result.final_output)

    run_one(conn, dsn, handle)
    assert sorted(calls) == ["a", "b", "request 1", "request 2"]
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "found"
    assert value(conn, "SELECT array_agg(key ORDER BY key) FROM outbox.checkpoints") == [
        "searcher 1/turn 1 request", "searcher 1/turn 2 call look_up c1", "searcher 1/turn 2 call look_up c2",
        "searcher 1/turn 2 request",
    ]  # fmt: skip


def test_outside_of_handlers_the_runner_is_that_of_the_sdk() -> None:
    agent = agent_of(TWO, "found")
    result = asyncio.run(OutboxRunner.run(agent, "find"))
    assert (result.final_output, result.last_agent) == ("found", agent)
    assert calls == ["request 1", "a", "b", "request 2"]


def test_a_conversation_is_that_of_the_sdk() -> None:
    assert handled(agent_of(TWO, "found")) == plain(agent_of(TWO, "found"))


def test_tools_of_one_response_run_in_parallel() -> None:
    both = asyncio.Barrier(2)

    @function_tool
    async def meet(name: str) -> str:
        async with asyncio.timeout(30):
            await both.wait()
        return name

    calls_of = [call("meet", "c1", name="x"), call("meet", "c2", name="y")]
    _, items = handled(agent_of(calls_of, "met", tools=[meet]))
    assert returned(items) == {"c1": "x", "c2": "y"}


def test_a_model_by_its_name_is_that_of_the_provider() -> None:
    class Provider:
        def get_model(self, name: str | None) -> Any:
            calls.append(name)
            return Script("hello", said=lambda number: calls.append(f"request {number}"))

        async def aclose(self) -> None:
            pass

    async def work() -> Any:
        result = await OutboxRunner.run(Agent(name="named", model="small"), "hi", run_config=config)
        return result.final_output

    config = RunConfig(model_provider=Provider())  # type: ignore[arg-type]

    async def handle(run: Run[Post]) -> None:
        assert await work() == "hello"

    pipeline = one_stage(handle)
    made = attempt(pipeline, "work", Post())
    attempt(pipeline, "work", Post(), attempt=2, kept=made.kept)
    assert calls == ["small", "request 1", "small"]
    assert isinstance(config.model_provider, Provider), "the caller's configuration stays as it was"


class Parcel(BaseModel):
    order: str
    lost: bool


def test_output_types_are_those_of_the_agent() -> None:
    agent = agent_of(TWO, '{"order": "7", "lost": true}', output_type=Parcel)
    assert handled(agent)[0] == Parcel(order="7", lost=True)


@pytest.mark.parametrize("wrap", [lambda agent: agent, handoff])
def test_handoffs_go_on_with_the_other_agent_and_its_tools(wrap: Any) -> None:
    @function_tool
    async def refund(cents: int) -> str:
        calls.append(cents)
        return f"{cents} paid"

    refunds = agent_of("-", [call("refund", "r", cents=5)], "refunded", name="refunds", tools=[refund])
    refunds.handoffs.append(triage := agent_of([call("transfer_to_refunds", "h")], name="triage"))
    triage.handoffs.append(wrap(refunds))

    async def work() -> Any:
        result = await OutboxRunner.run(triage, "money")
        return result.final_output, result.last_agent.name, returned(result.to_input_list())

    output, last, results = twice(work)
    assert (output, last, results["r"]) == ("refunded", "refunds", "5 paid")
    assert calls == ["request 1", "request 2", 5, "request 3"]


def test_an_agent_as_a_tool_keeps_its_own_requests_and_calls(conn: Conn, dsn: str) -> None:
    sub = agent_of(TWO, "details", name="sub")
    tool = sub.as_tool("research", "Researches.", custom_output_extractor=crash_once())
    agent = agent_of([call("research", "r", input="all")], "found", tools=[tool], name="main")

    async def handle(run: Run[Post]) -> Post:
        result = await OutboxRunner.run(agent, "find")
        return Post(content=str(returned(result.to_input_list())))

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states") == "{'r': 'details'}"
    assert sorted(calls) == ["a", "b", "request 1", "request 1", "request 2", "request 2"]


def crash_once() -> Any:
    crash = [True]

    async def extract(result: Any) -> str:
        if crash:
            crash.pop()
            raise Retry(after=0.01)
        return str(result.final_output)

    return extract


def test_a_tool_that_runs_an_agent_keeps_what_that_does() -> None:
    @function_tool
    async def research(what: str) -> str:
        result = await Runner.run(agent_of(TWO, "details", name="sub"), what)
        return str(result.final_output)

    output, items = handled(agent_of([call("research", "r", what="all")], "found", tools=[research], name="main"))
    assert (output, returned(items)) == ("found", {"r": "details"})


def test_guardrails_work_and_agents_in_them_are_kept() -> None:
    @input_guardrail
    async def polite(ctx: RunContextWrapper[Any], agent: Agent[Any], input: Any) -> GuardrailFunctionOutput:
        result = await Runner.run(agent_of("polite", name="judge"), input)
        return GuardrailFunctionOutput(result.final_output, tripwire_triggered=result.final_output != "polite")

    assert handled(agent_of(TWO, "found", input_guardrails=[polite]))[0] == "found"
    assert calls.count("request 1") == 2


def test_a_tripwire_ends_the_run_as_without_us(conn: Conn, dsn: str) -> None:
    @output_guardrail
    async def never(ctx: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    async def handle(run: Run[Post]) -> None:
        with pytest.raises(OutputGuardrailTripwireTriggered):
            await OutboxRunner.run(agent_of("bad", output_guardrails=[never]), "find")

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0


def test_a_guardrail_of_a_tool_may_refuse_a_call() -> None:
    @tool_input_guardrail
    def never(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
        return ToolGuardrailFunctionOutput.reject_content("not that one")

    @function_tool(tool_input_guardrails=[never])
    async def pay(cents: int) -> str:
        raise AssertionError

    agent = agent_of([call("pay", "p", cents=1)], "ok", tools=[pay])
    assert returned(handled(agent)[1]) == {"p": "not that one"}


def test_the_context_is_given_to_tools_and_instructions() -> None:
    @function_tool
    async def whose(ctx: RunContextWrapper[str]) -> str:
        return ctx.context

    def instructions(ctx: RunContextWrapper[str], agent: Agent[str]) -> str:
        return f"You help {ctx.context}."

    agent = agent_of([call("whose", "w")], "ok", tools=[whose], instructions=instructions)
    assert returned(handled(agent, context="eva")[1]) == {"w": "eva"}


def test_an_agent_itself_stays_as_it_was() -> None:
    agent = agent_of(TWO, "found")
    before = dict(vars(agent)), dict(vars(look_up))
    handled(agent)
    assert (dict(vars(agent)), dict(vars(look_up))) == before


def test_an_agent_of_a_result_may_go_on() -> None:
    agent = agent_of("hello", "again")

    async def work() -> Any:
        first = await OutboxRunner.run(agent, "hi")
        more = [*first.to_input_list(), {"role": "user", "content": "more"}]
        return (await OutboxRunner.run(first.last_agent, more)).final_output

    assert twice(work) == "again"
    assert calls == ["request 1", "request 2"]


@pytest.mark.parametrize("wrong", [TWO[0].model_copy(update={"arguments": "{no json"}), call("look_up", "c1", z=1)])
def test_what_a_model_gets_wrong_is_told_to_it_as_without_us(wrong: Any) -> None:
    assert handled(agent_of([wrong], "sorry")) == plain(agent_of([wrong], "sorry"))


def test_an_error_of_a_tool_is_told_to_the_model_and_kept() -> None:
    @function_tool
    async def broken() -> str:
        calls.append("broken")
        raise ValueError("broken")

    agent = agent_of([call("broken", "b")], "sorry", tools=[broken])
    assert handled(agent) == plain(agent)

    @function_tool(failure_error_function=lambda ctx, error: f"told: {error}")
    async def spoken() -> str:
        calls.append("spoken")
        raise ValueError("broken")

    assert returned(handled(agent_of([call("spoken", "b")], "sorry", tools=[spoken]))[1]) == {"b": "told: broken"}


def test_an_error_that_the_model_is_not_told_fails_the_attempt_and_is_tried_again(conn: Conn, dsn: str) -> None:
    @function_tool(failure_error_function=None)
    async def broken() -> str:
        calls.append("broken")
        if calls.count("broken") < 3:
            raise ConnectionError("down")
        return "works"

    async def handle(run: Run[Post]) -> None:
        await OutboxRunner.run(agent_of([call("broken", "b"), *TWO], "ok", tools=[broken, look_up]), "find")

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "DONE"
    assert (calls.count("broken"), calls.count("request 1"), calls.count("request 2")) == (3, 1, 1)


def test_our_own_errors_pass_through_the_sdk(conn: Conn, dsn: str) -> None:
    @function_tool
    async def rejecting() -> str:
        raise outbox.Reject("we don't do that")

    assert failing(conn, dsn, agent_of([call("rejecting", "r")], "ok", tools=[rejecting]), 4) == "we don't do that"
    assert calls == ["request 1"], "the job is dead at once"


class Opaque:
    pass


class Rate(BaseModel):
    value: float


@pytest.mark.parametrize("result", [Opaque(), {"a": [Opaque()]}, "a\0b", float("nan"), "\ud800", Rate(value=math.nan)])
def test_a_result_that_json_can_not_hold_is_refused_by_the_name_of_its_tool(conn: Conn, dsn: str, result: Any) -> None:
    @function_tool
    async def odd() -> Any:
        calls.append("odd")
        return result

    told = failing(conn, dsn, agent_of([call("odd", "o")], "ok", tools=[odd]), 4)
    assert told.startswith("the result of tool odd can't be kept: ")
    assert calls == ["request 1", "odd"], "the job is dead, since the call was made"


@pytest.mark.parametrize("result", [None, 5, {"a": [1, None]}, ["x"], "ünïcödé 🦆", "x" * 200_000])
def test_a_result_is_told_to_the_model_as_without_us(result: Any) -> None:
    @function_tool
    async def give() -> Any:
        return result

    agent = agent_of([call("give", "g")], "ok", tools=[give])
    assert handled(agent) == plain(agent)


def test_pictures_and_files_are_kept_as_such() -> None:
    from agents import ToolOutputImage, ToolOutputText

    @function_tool
    async def draw() -> Any:
        calls.append("draw")
        return [ToolOutputText(text="see"), ToolOutputImage(image_url="https://example.com/duck.png")]

    agent = agent_of([call("draw", "d")], "ok", tools=[draw])
    assert handled(agent) == plain(agent)


def test_a_tool_that_is_no_function_tool_of_the_sdk_is_kept() -> None:
    async def invoke(ctx: Any, arguments: str) -> str:
        calls.append(arguments)
        return "done"

    by_hand = FunctionTool("by_hand", "", {"type": "object", "properties": {}}, invoke, strict_json_schema=False)
    agent = agent_of([call("by_hand", "b")], "ok", tools=[by_hand])
    assert returned(handled(agent)[1]) == {"b": "done"}


def test_a_request_that_fails_is_tried_again_by_the_sdk_and_kept_once() -> None:
    class Flaky(Script):
        async def get_response(self, *args: Any, **kwargs: Any) -> Any:
            made = await super().get_response(*args, **kwargs)
            if len(self.inputs) == 1:
                raise ConnectionError("once")
            return made

    retry = ModelRetrySettings(max_retries=2, policy=lambda context: True)
    model = Flaky("ok", said=lambda number: calls.append(f"request {number}"))
    agent = Agent(name="flaky", model=model, model_settings=ModelSettings(retry=retry))
    assert handled(agent)[0] == "ok"
    assert calls == ["request 1", "request 1"]


@pytest.mark.parametrize(
    ("later", "told"),
    [
        (lambda agent: agent.tools.append(function_tool(lambda: 1, name_override="new")), "its tools was"),
        (lambda agent: setattr(agent, "model", Script([call("look_up", "other", order="a")], "x")), "other calls"),
    ],
)
def test_an_agent_that_has_changed_is_said_and_stopped(conn: Conn, dsn: str, later: Any, told: str) -> None:
    agent = agent_of([TWO[0]], "found")

    async def handle(run: Run[Post]) -> None:
        if run.attempt == 2:
            later(agent)
            conn.execute("DELETE FROM outbox.checkpoints WHERE key LIKE '%turn 1 request'") if "calls" in told else None
        await OutboxRunner.run(agent, "find")
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=2))
    error = value(conn, "SELECT error FROM outbox.dead_jobs")
    assert error.startswith("AgentChanged: agent searcher: an earlier attempt has kept 'searcher 1/turn ")
    assert told in error


def test_a_prompt_that_changes_is_said(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        await OutboxRunner.run(agent_of("ok"), f"attempt {run.attempt}")
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=2))
    assert "another prompt" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_plain_handler_is_told_that_agents_need_an_async_one(conn: Conn, dsn: str) -> None:
    def handle(run: Run[Post]) -> None:
        asyncio.run(OutboxRunner.run(agent_of("ok"), "find"))

    run_one(conn, dsn, handle, retry=Backoff(attempts=1))
    assert "an agent runs in an async handler" in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_plain_tool_runs_in_a_thread_and_can_not_run_an_agent(conn: Conn, dsn: str) -> None:
    @function_tool
    def research() -> str:
        return str(Runner.run_sync(agent_of("x"), "y").final_output)

    told = failing(conn, dsn, agent_of([call("research", "r")], "ok", tools=[research]))
    assert "make the tool async" in told


def test_a_session_and_a_stream_are_refused(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        with pytest.raises(HandlerError, match="a session can't be kept"):
            await OutboxRunner.run(agent_of("ok"), "find", session=SQLiteSession("s"))
        tool = agent_of("ok", name="sub").as_tool("sub", "", on_stream=lambda event: None)
        with pytest.raises(HandlerError, match="what run_streamed returns can't be kept"):
            await OutboxRunner.run(agent_of([call("sub", "s", input="x")], "ok", tools=[tool]), "find")

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "DONE"


def test_a_run_that_is_too_long_ends_as_without_us(conn: Conn, dsn: str) -> None:
    endless = [[call("look_up", f"c{n}", order=str(n))] for n in range(9)]

    async def handle(run: Run[Post]) -> None:
        with pytest.raises(MaxTurnsExceeded):
            await OutboxRunner.run(agent_of(*endless), "find", max_turns=3)

    run_one(conn, dsn, handle)
    assert calls.count("request 3") == 1


def test_an_input_tripwire_that_trips_is_raised(conn: Conn, dsn: str) -> None:
    @input_guardrail(run_in_parallel=False)
    async def never(ctx: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    async def handle(run: Run[Post]) -> None:
        with pytest.raises(InputGuardrailTripwireTriggered):
            await OutboxRunner.run(agent_of("x", input_guardrails=[never]), "find")

    run_one(conn, dsn, handle)
    assert calls == []


def test_in_a_batch_durable_says_whose_run_it_is(conn: Conn, dsn: str) -> None:
    async def handle(runs: list[Run[Post]]) -> list[Post]:
        await OutboxRunner.run(agent_of("free"), "find")
        for run in runs:
            with durable(run):
                await OutboxRunner.run(agent_of("kept"), "find")
        return [run.data for run in runs]

    run_one(conn, dsn, handle, transaction=True, batch=5)
    assert (calls, value(conn, "SELECT count(*) FROM outbox.checkpoints")) == (["request 1", "request 1"], 1)


def test_calls_of_an_mcp_server_are_kept(conn: Conn, dsn: str, tmp_path: Path) -> None:
    called = tmp_path / "calls"

    async def handle(run: Run[Post]) -> None:
        given = {"command": sys.executable, "args": [str(APPS / "mcp_tools.py"), str(called)]}
        async with MCPServerStdio(given, name="stock", client_session_timeout_seconds=60) as server:  # type: ignore[arg-type]
            both = [call("in_stock", "c1", item="socks"), call("in_stock", "c2", item="hat")]
            await OutboxRunner.run(agent_of(both, "ok", tools=[], mcp_servers=[server]), "find")
        if run.attempt == 1:
            raise ValueError("after the agent")

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "DONE"
    assert sorted(called.read_text().split()) == ["hat", "socks"]
    assert calls == ["request 1", "request 2"]


def test_hooks_are_called_by_each_attempt() -> None:
    started: list[str] = []

    class Hooks(AgentHooks[Any]):
        async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
            started.append(tool.name)

    assert handled(agent_of(TWO, "found", hooks=Hooks()))[0] == "found"
    assert started == ["look_up"] * 4


def test_a_tool_has_a_key_that_is_the_same_in_every_attempt(conn: Conn, dsn: str) -> None:
    @function_tool(failure_error_function=None)
    async def pay() -> str:
        calls.append(idempotency_key())
        if len(calls) < 4:
            raise ConnectionError
        return "paid"

    async def handle(run: Run[Post]) -> None:
        await OutboxRunner.run(Agent(name="payer", model=Script([call("pay", "p")], "ok"), tools=[pay]), "go")

    run_one(conn, dsn, handle)
    assert (len(calls), len(set(calls))) == (4, 1)
    with pytest.raises(HandlerError, match="is for the tools of an agent"):
        idempotency_key()


def test_a_tool_may_be_tried_again_within_the_attempt(conn: Conn, dsn: str) -> None:
    @tool_policy(retry=Backoff(first=0, attempts=3))
    @function_tool
    async def flaky() -> str:
        calls.append("flaky")
        if calls.count("flaky") < 3:
            raise ConnectionError
        return "works"

    async def handle(run: Run[Post]) -> None:
        result = await OutboxRunner.run(agent_of([call("flaky", "f")], "ok", tools=[flaky]), "go")
        assert (run.attempt, returned(result.to_input_list())) == (1, {"f": "works"})

    run_one(conn, dsn, handle)
    assert calls.count("flaky") == 3


def test_a_tool_that_takes_too_long_is_ended(conn: Conn, dsn: str) -> None:
    async def slow() -> str:
        calls.append("slow")
        await asyncio.sleep(3600)
        return "never"

    by_sdk = agent_of([call("slow", "s")], "ok", tools=[function_tool(slow, timeout=0.05)])
    assert handled(by_sdk) == plain(by_sdk)
    by_us = tool_policy(timeout=0.05)(function_tool(slow, failure_error_function=None))
    assert "TimeoutError" in failing(conn, dsn, agent_of([call("slow", "s")], "ok", tools=[by_us]))


def test_a_tool_that_is_not_kept_is_called_by_each_attempt() -> None:
    @tool_policy(False)
    @function_tool
    async def now() -> str:
        now_calls.append(1)
        return "noon"

    now_calls: list[int] = []
    handled(agent_of([call("now", "n")], "ok", tools=[now]))
    assert len(now_calls) == 2


@pytest.mark.parametrize(
    "wrong", [{"effect": 1}, {"on_unknown": "repeat"}, {"retries": 3}, {"timeout": -1}, {"retry": 5}]
)
def test_a_policy_that_says_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="tool look_up: "):
        tool_policy(**wrong)(function_tool(lambda: 1, name_override="look_up"))
    with pytest.raises(DefinitionError, match="above @function_tool"):
        tool_policy(effect=True)(lambda: 1)  # type: ignore[type-var]


def test_a_tool_that_acts_without_a_function_is_refused(conn: Conn, dsn: str) -> None:
    from agents import LocalShellTool

    agent = agent_of("ok", tools=[LocalShellTool(executor=lambda request: "x")])
    assert "LocalShellTool 'local_shell' can't be kept" in failing(conn, dsn, agent)


def test_an_agent_that_acts_in_a_sandbox_is_refused(conn: Conn, dsn: str) -> None:
    """Its tools are made while it runs, so they would be called again by each attempt."""
    inside = SandboxAgent(name="inside", model=Script("ok"))
    agent = agent_of([call("transfer_to_inside", "h")], handoffs=[inside])
    assert "a SandboxAgent does in its sandbox can't be kept" in failing(conn, dsn, agent)


def asking() -> Agent[Any]:
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        calls.append(cents)
        return f"{cents} paid"

    return agent_of([*TWO, call("refund", "r", cents=5)], "refunded", tools=[look_up, refund])


def test_a_handler_may_decide_on_interruptions_itself() -> None:
    agent = asking()

    async def work() -> Any:
        result = await OutboxRunner.run(agent, "find")
        (asked,) = result.interruptions
        state = result.to_state()
        state.approve(asked)
        result = await OutboxRunner.run(agent, state)
        return result.final_output, returned(result.to_input_list())

    assert twice(work) == ("refunded", {"c1": "A", "c2": "B", "r": "5 paid"})
    assert calls == ["request 1", "a", "b", 5, "request 2"]


def test_a_state_that_was_written_may_be_restored_with_the_agent_itself() -> None:
    agent = asking()

    async def work() -> Any:
        written = (await OutboxRunner.run(agent, "find", context={"a": 1})).to_state().to_string()
        state = await RunState.from_string(agent, written)
        for asked in state.get_interruptions():
            state.reject(asked, rejection_message="no")
        result = await OutboxRunner.run(agent, state)
        return result.final_output, returned(result.to_input_list()), result.context_wrapper.context

    assert twice(work) == ("refunded", {"c1": "A", "c2": "B", "r": "no"}, {"a": 1})


def test_an_agent_may_run_many_times_at_once(conn: Conn, dsn: str) -> None:
    agent = agent_of(TWO, "found")

    async def handle(run: Run[Post]) -> Post:
        results = await asyncio.gather(*(OutboxRunner.run(agent, f"{run.entity_id} {n}") for n in range(3)))
        if run.attempt == 1:
            raise ValueError("after the agents")
        return Post(content=" ".join(result.final_output for result in results))

    pipeline = deployed(conn, one_stage(handle))
    pipeline.submit_many(conn, {str(n): Post() for n in range(5)}.items())
    drain_all(conn, dsn, pipeline)
    assert value(conn, "SELECT array_agg(DISTINCT metadata ->> 'content') FROM outbox.workflow_states") == [
        "found found found"
    ]
    assert (len(calls), calls.count("request 1"), calls.count("a")) == (60, 15, 15)


@pytest.mark.parametrize("name", ["x" * 300, "Ünïcödé 🦆", "a/b 1", " "])
def test_names_of_agents_tools_and_calls_may_be_odd(name: str) -> None:
    odd = function_tool(lambda: "ok", name_override=name.strip() or "tool")
    agent = agent_of([call(odd.name, f"call {name}")], "found", tools=[odd], name=name)
    assert returned(handled(agent)[1]) == {f"call {name}": "ok"}


def test_a_tool_may_end_the_run_with_its_result() -> None:
    agent = agent_of(TWO, "never", tool_use_behavior="stop_on_first_tool")
    assert handled(agent)[0] == "A"
    assert calls == ["request 1", "a", "b"]


def test_a_handoff_that_has_changed_is_said(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        other = agent_of("-", "bye", name=f"other {run.attempt}")
        await OutboxRunner.run(agent_of("hello", handoffs=[other]), "hi")
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=2))
    assert "transfer_to_other_1, and is look_up, transfer_to_other_2 now" in value(
        conn, "SELECT error FROM outbox.dead_jobs"
    )


def test_another_default_runner_stays_the_one_that_runs() -> None:
    class Counting:
        async def run(self, *args: Any, **kwargs: Any) -> Any:
            runs.append(1)
            return await before.run(*args, **kwargs)

    runs: list[int] = []
    before = get_default_agent_runner()
    set_default_agent_runner(Counting())  # type: ignore[arg-type]
    try:
        sub = agent_of("details", name="sub").as_tool("sub", "")
        assert handled(agent_of([call("sub", "s", input="x")], "found", tools=[sub]))[0] == "found"
    finally:
        set_default_agent_runner(before)
    assert len(runs) == 2 + 1, "the agent and the one in its tool, whose result the second attempt has"


def test_a_blocking_tool_runs_in_a_thread_and_knows_its_key() -> None:
    @function_tool
    def pay() -> str:
        calls.append(threading.current_thread() is threading.main_thread())
        return idempotency_key()

    assert handled(agent_of([call("pay", "p")], "ok", tools=[pay]))[0] == "ok"
    assert calls == ["request 1", False, "request 2"]
