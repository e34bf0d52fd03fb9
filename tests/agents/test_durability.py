"""What an agent does inside a handler is made once over all attempts, in whatever order its tools end."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastmcp.client.transports import StdioTransport
from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset, ModelRetry, RunContext, ToolCallPart, ToolReturn, UserError
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from kit.models import call, script
from kit.pipelines import Post, one_stage, run_one, status_of, value
from outbox import Backoff, Run
from outbox.agents.pydantic_ai import OutboxDurability, durable, report_progress
from outbox.testing import attempt

Conn = psycopg.Connection[Any]
ONCE = Backoff(attempts=1)
APPS = Path(__file__).parents[1] / "apps"
calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def error_of(conn: Conn) -> str:
    return str(value(conn, "SELECT error FROM outbox.dead_jobs"))


def keys(conn: Conn) -> list[str]:
    return [key for (key,) in conn.execute("SELECT key FROM outbox.checkpoints ORDER BY made_at, key").fetchall()]


def note(number: int) -> None:
    calls.append(f"request {number}")


class City(BaseModel):
    name: str
    people: int


async def look_up(q: str) -> str:
    calls.append(q)
    return q.upper()


def searcher(*answers: Any, **options: Any) -> Agent[None, str]:
    """Returns an agent with the tool `look_up`, and a model that asks for two look-ups and then answers."""
    model = script(*(answers or ([call("look_up", "c1", q="a"), call("look_up", "c2", q="b")], "both")), said=note)
    return Agent(model, name="searcher", tools=[look_up], capabilities=[OutboxDurability(**options)])


def failing_once(agent: Agent[Any, Any], prompt: str = "find") -> Callable[[Run[Post]], Any]:
    """Returns a handler that fails once after its agent has ended."""

    async def handle(run: Run[Post]) -> Post:
        result = await agent.run(prompt)
        if run.attempt == 1:
            raise ValueError("after the agent")
        return Post(content=str(result.output))

    return handle


def content(conn: Conn) -> str:
    return str(value(conn, "SELECT metadata ->> 'content' FROM outbox.workflow_states"))


def test_each_request_and_call_is_made_once_over_all_attempts(conn: Conn, dsn: str) -> None:
    run_one(conn, dsn, failing_once(searcher()))
    assert calls == ["request 1", "a", "b", "request 2"]
    assert (status_of(conn, "a"), content(conn)) == ("DONE", "both")
    assert value(conn, "SELECT bool_and(attempt = 1) FROM outbox.checkpoints")
    assert sorted(keys(conn)) == [
        "run 1/model request 1", "run 1/model request 2",
        "run 1/step 1 call look_up c1 1", "run 1/step 1 call look_up c2 1",
    ]  # fmt: skip


def test_a_test_model_with_all_kinds_of_tools_ends_as_without_us(conn: Conn, dsn: str) -> None:
    def make(*capabilities: Any) -> Agent[None, City]:
        agent = Agent(TestModel(), name="cities", output_type=City, capabilities=capabilities)

        @agent.tool_plain
        async def of_model(city: City) -> City:
            return city

        @agent.tool
        def of_context(ctx: RunContext[None], n: int) -> ToolReturn:
            return ToolReturn(return_value=[n, ctx.tool_name], content="see above", metadata={"n": n})

        return agent

    plain = asyncio.run(make().run("which?"))
    seen: list[Any] = []

    async def handle(run: Run[Post]) -> None:
        result = await make(OutboxDurability()).run("which?")
        seen.append((result.output, [[type(part) for part in each.parts] for each in result.all_messages()]))
        if run.attempt == 1:
            raise ValueError

    run_one(conn, dsn, handle)
    assert seen == [(plain.output, [[type(part) for part in each.parts] for each in plain.all_messages()])] * 2


def test_outside_of_a_handler_an_agent_is_as_without_us() -> None:
    assert asyncio.run(searcher().run("find")).output == "both"
    assert searcher().run_sync("find").output == "both"


def test_tools_of_one_response_run_in_parallel_and_end_in_any_order(conn: Conn, dsn: str) -> None:
    """The first call waits for the second one, and in the next attempt each gets its own result."""
    second = asyncio.Event()
    agent = Agent(
        script([call("wait", "c1", n=1), call("wait", "c2", n=2)], "ok"), name="pair", capabilities=[OutboxDurability()]
    )
    seen: list[Any] = []

    @agent.tool_plain
    async def wait(n: int) -> int:
        calls.append(n)
        if n == 1:
            await second.wait()
        second.set()
        return n * 10

    async def handle(run: Run[Post]) -> None:
        second.clear()
        result = await agent.run("go")
        seen.append([part.content for part in result.all_messages()[2].parts])  # type: ignore[union-attr]
        if run.attempt == 1:
            raise ValueError

    run_one(conn, dsn, handle)
    assert (calls, seen) == ([1, 2], [[10, 20], [10, 20]])


def test_a_crash_of_one_parallel_tool_repeats_that_one_only(conn: Conn, dsn: str) -> None:
    agent = searcher([call("look_up", "c1", q="a"), call("fail", "c2")], "ok")

    @agent.tool_plain
    async def fail() -> str:
        calls.append("fail")
        while "a" not in calls or not await kept():
            await asyncio.sleep(0.005)
        if calls.count("fail") == 1:
            raise ConnectionError("the other side is down")
        return "ok"

    async def kept() -> bool:
        text = "SELECT count(*) > 1 FROM outbox.checkpoints"
        return bool(await asyncio.to_thread(value, conn, text))

    async def handle(run: Run[Post]) -> None:
        await agent.run("go")

    run_one(conn, dsn, handle)
    assert (calls.count("a"), calls.count("fail"), calls.count("request 1")) == (1, 2, 1)
    assert status_of(conn, "a") == "DONE"


def test_two_calls_with_one_id_in_different_steps_are_two_calls(conn: Conn, dsn: str) -> None:
    agent = searcher([call("look_up", "x", q="a")], [call("look_up", "x", q="b")], "ok")
    run_one(conn, dsn, failing_once(agent))
    assert calls == ["request 1", "a", "request 2", "b", "request 3"]


def test_a_retry_that_a_tool_asks_for_is_kept_and_told_to_the_model(conn: Conn, dsn: str) -> None:
    agent = searcher([call("pick", "c1", n=1)], [call("pick", "c2", n=2)], "ok")

    @agent.tool_plain
    def pick(n: int) -> int:
        calls.append(n)
        if n == 1:
            raise ModelRetry("another number")
        return n

    run_one(conn, dsn, failing_once(agent))
    assert (calls, content(conn)) == (["request 1", 1, "request 2", 2, "request 3"], "ok")


@pytest.mark.parametrize(
    "wrong", [ToolCallPart("look_up", "{no json", "c1"), ToolCallPart("look_up", {"z": 1}, "c1"), call("unknown", "c1")]
)
def test_what_a_model_gets_wrong_is_told_to_it_as_without_us(conn: Conn, dsn: str, wrong: ToolCallPart) -> None:
    plain = asyncio.run(Agent(script([wrong], "sorry"), name="searcher", tools=[look_up]).run("find"))
    calls.clear()
    seen: list[Any] = []

    async def handle(run: Run[Post]) -> None:
        result = await searcher([wrong], "sorry").run("find")
        seen.append(said(result.all_messages()))
        if run.attempt == 1:
            raise ValueError

    def said(messages: Any) -> list[Any]:
        return [(part.part_kind, getattr(part, "content", None)) for each in messages for part in each.parts]

    run_one(conn, dsn, handle)
    assert seen == [said(plain.all_messages())] * 2
    assert calls == ["request 1", "request 2"]


class Opaque:
    pass


class Rate(BaseModel):
    value: float


@pytest.mark.parametrize(
    "result",
    [Opaque(), {"a": [Opaque()]}, "a\0b", "\ud800", float("nan"), {"a": [1, float("inf")]}, Rate(value=math.nan)],
)
def test_a_result_that_json_can_not_hold_ends_the_job_and_names_the_tool(conn: Conn, dsn: str, result: Any) -> None:
    agent = searcher([call("odd", "c1")], "ok")

    @agent.tool_plain
    def odd() -> Any:
        calls.append("odd")
        return result

    async def handle(run: Run[Post]) -> None:
        await agent.run("go")

    run_one(conn, dsn, handle)
    assert calls == ["request 1", "odd"], "it is not called again"
    assert error_of(conn).startswith("the result of tool odd can't be kept: ")


def changed(conn: Conn, dsn: str, first: Agent[Any, Any], then: Agent[Any, Any], *prompts: str) -> str:
    """Runs `first` in the first attempt, and `then` in the second one; returns what becomes of that."""

    async def handle(run: Run[Post]) -> None:
        await (first if run.attempt == 1 else then).run(prompts[run.attempt - 1] if prompts else "find")
        raise ValueError("after the agent")

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=2))
    return error_of(conn)


def test_an_agent_with_other_tools_is_stopped_and_says_so(conn: Conn, dsn: str) -> None:
    other = searcher()
    other.tool_plain(lambda: 1, name="new")
    told = changed(conn, dsn, searcher(), other)
    assert "AgentChanged: agent searcher: an earlier attempt has kept 'run 1/model request 1': " in told
    assert "its tools was look_up, and is look_up, new now" in told
    assert calls == ["request 1", "a", "b", "request 2"], "nothing is called after that"


def test_another_prompt_is_stopped_and_not_answered_with_what_was_kept(conn: Conn, dsn: str) -> None:
    told = changed(conn, dsn, searcher(), searcher(), "find cats", "find dogs")
    assert "AgentChanged" in told
    assert "another prompt" in told


def test_agents_that_run_in_another_order_are_stopped(conn: Conn, dsn: str) -> None:
    names = ["first", "second"]
    agents = {name: Agent(TestModel(), name=name, capabilities=[OutboxDurability()]) for name in names}

    async def handle(run: Run[Post]) -> None:
        for name in names if run.attempt == 1 else reversed(names):
            await agents[name].run("go")
        raise ValueError

    run_one(conn, dsn, handle, retry=Backoff(first=0, attempts=2))
    assert "its agent was first, and is second now" in error_of(conn)


def test_instructions_may_tell_the_time(conn: Conn, dsn: str) -> None:
    agent = searcher()
    agent.instructions(lambda: f"it is attempt {len(calls)}")
    run_one(conn, dsn, failing_once(agent))
    assert calls == ["request 1", "a", "b", "request 2"]


def test_several_runs_at_once_keep_their_own(conn: Conn, dsn: str) -> None:
    agent = Agent(TestModel(custom_output_text="x"), name="many", tools=[look_up], capabilities=[OutboxDurability()])
    ids: list[Any] = []

    async def handle(run: Run[Post]) -> None:
        results = await asyncio.gather(*(agent.run(f"n {n}") for n in range(3)))
        ids.append([each.run_id for each in results])
        if run.attempt == 1:
            raise ValueError

    run_one(conn, dsn, handle)
    assert value(conn, "SELECT count(*) FROM outbox.checkpoints WHERE attempt = 1") == 9
    assert len(calls) == 3
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3


def test_an_agent_in_a_tool_of_an_agent_keeps_its_own_requests(conn: Conn, dsn: str) -> None:
    """The tool fails after its agent has ended: only the tool is called again, and its agent's requests are kept."""
    helper = searcher()
    chief = Agent(
        script([call("delegate", "d1"), call("delegate", "d2")], "done"),
        name="chief",
        capabilities=[OutboxDurability()],
    )
    failed: list[str] = []

    @chief.tool
    async def delegate(ctx: RunContext[None]) -> str:
        result = await helper.run("find", usage=ctx.usage)
        if ctx.tool_call_id not in failed:
            failed.append(str(ctx.tool_call_id))
            raise ConnectionError
        return result.output

    async def handle(run: Run[Post]) -> Post:
        return Post(content=(await chief.run("go")).output)

    run_one(conn, dsn, handle)
    assert content(conn) == "done"
    assert calls.count("request 1") == calls.count("a") == 2, "once for each of the two calls"


def test_a_tool_fails_and_is_tried_again_within_the_attempt(conn: Conn, dsn: str) -> None:
    agent = searcher([call("flaky", "c1")], "ok")

    @agent.tool_plain(metadata={"outbox": {"retry": Backoff(first=0, attempts=3)}})
    async def flaky() -> str:
        calls.append("flaky")
        if calls.count("flaky") < 3:
            raise ConnectionError
        return "fine"

    async def handle(run: Run[Post]) -> None:
        await agent.run("go")
        assert run.attempt == 1

    run_one(conn, dsn, handle)
    assert (calls.count("flaky"), status_of(conn, "a")) == (3, "DONE")


def test_a_tool_has_its_time(conn: Conn, dsn: str) -> None:
    agent = searcher([call("hang", "c1")], "ok")

    @agent.tool_plain(metadata={"outbox": {"timeout": 0.01}})
    async def hang() -> str:
        await asyncio.Event().wait()
        return ""

    async def handle(run: Run[Post]) -> None:
        await agent.run("go")

    run_one(conn, dsn, handle, retry=ONCE)
    assert "TimeoutError" in error_of(conn)


def test_a_tool_may_opt_out(conn: Conn, dsn: str) -> None:
    agent = searcher([call("now", "c1")], "ok")

    @agent.tool_plain(metadata={"outbox": False})
    def now() -> str:
        calls.append("now")
        return "late"

    run_one(conn, dsn, failing_once(agent))
    assert calls == ["request 1", "now", "request 2", "now"]


@pytest.mark.parametrize("wrong", [5, {"timout": 1}, {"retry": 3}, {"timeout": -1}])
def test_metadata_that_says_nothing_is_refused(conn: Conn, dsn: str, wrong: Any) -> None:
    agent = searcher([call("tool", "c1")], "ok")
    agent.tool_plain(lambda: 1, name="tool", metadata={"outbox": wrong})

    async def handle(run: Run[Post]) -> None:
        await agent.run("go")

    run_one(conn, dsn, handle, retry=ONCE)
    assert "DefinitionError: tool tool: metadata 'outbox': " in error_of(conn)


def test_events_reach_progress_and_are_not_kept(conn: Conn, dsn: str) -> None:
    agent = searcher(event_stream_handler=report_progress)
    handle = failing_once(agent)
    pipeline = one_stage(handle)
    with pytest.raises(ValueError, match="after the agent"):
        attempt(pipeline, "work", Post())
    assert calls == ["request 1", "a", "b", "request 2"]
    made = attempt(pipeline, "work", Post(), attempt=2)
    assert made.progress == "step 2: answers"
    calls.clear()
    assert attempt(pipeline, "work", Post(), attempt=2, kept=made.kept).data.content == "both "
    assert calls == []


def test_events_reach_a_callback(conn: Conn, dsn: str) -> None:
    seen: list[str] = []

    async def hear(ctx: Any, events: Any) -> None:
        seen.extend([event.event_kind async for event in events])

    run_one(conn, dsn, failing_once(searcher(event_stream_handler=hear)))
    assert seen.count("part_start") == 3, "of the model once, as its requests"
    assert seen.count("function_tool_result") >= 2


def test_a_run_without_a_name_or_a_toolset_without_an_id_is_refused() -> None:
    with pytest.raises(UserError, match="unique `name`"):
        Agent(TestModel(), capabilities=[OutboxDurability()])
    with pytest.raises(UserError, match="unique `id`"):
        Agent(TestModel(), name="x", toolsets=[FunctionToolset([look_up])], capabilities=[OutboxDurability()])


def test_tools_that_are_added_to_a_run_are_refused_and_external_ones_are_not(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> None:
        await searcher("ok").run("go", toolsets=[ExternalToolset([ToolDefinition(name="outside")])])
        await searcher("ok").run("go", toolsets=[FunctionToolset([look_up], id="late")])

    run_one(conn, dsn, handle, retry=ONCE)
    assert "UserError" in error_of(conn)
    assert len(keys(conn)) == 1


def test_a_model_that_is_registered_may_be_chosen_and_another_one_may_not(conn: Conn, dsn: str) -> None:
    fast = script("fast", said=note)
    agent = searcher("slow", models={"fast": fast})

    async def handle(run: Run[Post]) -> Post:
        chosen = [(await agent.run("go", model=model)).output for model in (None, "fast", fast)]
        with pytest.raises(UserError, match="was not registered"):
            await agent.run("go", model=script("other"))
        if run.attempt == 1:
            raise ValueError
        return Post(content=" ".join(chosen))

    run_one(conn, dsn, handle)
    assert (content(conn), calls) == ("slow fast fast", ["request 1"] * 3)


def test_an_agent_in_a_plain_handler_says_that_it_needs_an_async_one(conn: Conn, dsn: str) -> None:
    def handle(run: Run[Post]) -> None:
        searcher().run_sync("find")

    run_one(conn, dsn, handle, retry=ONCE)
    assert "an agent runs in an async handler" in error_of(conn)
    assert calls == []


def test_an_agent_in_a_plain_tool_says_that_it_needs_an_async_one(conn: Conn, dsn: str) -> None:
    chief = searcher([call("delegate", "c1")], "ok")

    @chief.tool_plain
    def delegate() -> str:
        return searcher().run_sync("find").output

    async def handle(run: Run[Post]) -> None:
        await chief.run("go")

    run_one(conn, dsn, handle, retry=ONCE)
    assert calls == ["request 1"]
    assert error_of(conn)


def test_blocks_of_a_run_count_its_agents_together(conn: Conn, dsn: str) -> None:
    async def handle(run: Run[Post]) -> Post:
        first = await searcher("one").run("go")
        with durable(run):
            second = await searcher("two").run("go")
        if run.attempt == 1:
            raise ValueError
        return Post(content=f"{first.output} {second.output}")

    run_one(conn, dsn, handle)
    assert (content(conn), calls) == ("one two", ["request 1", "request 1"])


def test_a_handler_of_a_batch_says_whose_run_it_is(conn: Conn, dsn: str) -> None:
    async def handle(runs: list[Run[Post]]) -> list[Post]:
        await searcher("free").run("go")
        made = []
        for run in runs:
            with durable(run):
                made.append(Post(content=(await searcher("kept").run("go")).output))
        return made

    run_one(conn, dsn, handle, transaction=True, batch=5)
    assert (content(conn), len(calls), len(keys(conn))) == ("kept", 2, 1)


def test_calls_of_an_mcp_server_are_kept(conn: Conn, dsn: str, tmp_path: Path) -> None:
    called = tmp_path / "calls"
    server = StdioTransport(sys.executable, [str(APPS / "mcp_tools.py"), str(called)])
    agent: Agent[None, str] = Agent(
        script([call("in_stock", "c1", item="socks"), call("in_stock", "c2", item="hat")], "ok", said=note),
        name="shop", toolsets=[MCPToolset(server, id="stock")], capabilities=[OutboxDurability()],
    )  # fmt: skip
    run_one(conn, dsn, failing_once(agent))
    assert sorted(called.read_text().split()) == ["hat", "socks"]
    assert calls == ["request 1", "request 2"]
    assert "run 1/tools of stock 1" in keys(conn)
    assert content(conn) == "ok"
