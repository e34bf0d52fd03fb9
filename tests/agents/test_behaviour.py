"""What Pydantic AI promises of any durable engine: an agent in a handler behaves as without one, and is replayed."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    CancellationToken,
    FunctionToolset,
    ModelRetry,
    ModelSettings,
    RunContext,
    RunTimedOut,
    ToolFailed,
    UsageLimitExceeded,
    UsageLimits,
    UserError,
)
from pydantic_ai.capabilities import ResolveModelId
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import DynamicToolset

from kit.models import call, script
from kit.pipelines import Post, one_stage
from outbox import Run
from outbox.agents.pydantic_ai import OutboxDurability, idempotency_key
from outbox.errors import HandlerError
from outbox.testing import attempt

calls: list[Any] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def agent_of(*answers: Any, **options: Any) -> Agent[Any, Any]:
    model = script(*answers, said=lambda number: calls.append(f"request {number}"))
    options["capabilities"] = [OutboxDurability(), *options.get("capabilities", [])]
    return Agent(model, name="agent", **options)


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


async def once(n: int) -> int:
    calls.append(n)
    return n * 2


def test_the_tools_of_a_dynamic_toolset_are_kept() -> None:
    def choose(ctx: RunContext[Any]) -> FunctionToolset[Any]:
        calls.append("chosen")
        return FunctionToolset([once])

    agent = agent_of([call("once", "c1", n=4)], "ok", toolsets=[DynamicToolset(choose, id="chosen")])

    async def work() -> Any:
        return (await agent.run("go")).all_messages()[2].parts[0].content

    assert twice(work) == 8
    assert 4 in calls


def test_a_tool_that_has_failed_is_told_to_the_model() -> None:
    agent = agent_of([call("broken", "c1")], "sorry")

    @agent.tool_plain
    async def broken() -> str:
        calls.append("broken")
        raise ToolFailed("out of order")

    async def work() -> Any:
        result = await agent.run("go")
        return result.all_messages()[2].parts[0].content, result.output

    assert twice(work) == ("out of order", "sorry")


def test_usage_messages_and_ids_are_the_same_in_each_attempt() -> None:
    agent = agent_of([call("once", "c1", n=1)], "ok", tools=[once])

    async def work() -> Any:
        result = await agent.run("go")
        responses = [each.timestamp for each in result.all_messages() if each.kind == "response"]
        return result.usage, result.run_id, result.all_messages()[0].conversation_id, responses

    assert twice(work)[0].requests == 2


def test_a_run_may_have_an_id_of_its_own() -> None:
    agent = agent_of("one")

    async def work() -> Any:
        results = [await agent.run("go", run_id=run_id) for run_id in ("mine", "mine", "other")]
        return [each.run_id for each in results]

    assert twice(work) == ["mine", "mine", "other"]
    assert calls == ["request 1"] * 3


def test_a_stream_and_an_iteration_are_kept() -> None:
    agent = agent_of("some words")

    async def work() -> Any:
        async with agent.run_stream("go") as stream:
            streamed = await stream.get_output()
        async with agent.iter("go") as nodes:
            async for _ in nodes:
                pass
        assert nodes.result is not None
        return streamed, nodes.result.output

    assert twice(work) == ("some words ", "some words")
    assert calls == ["request 1"] * 2


def test_an_output_that_is_refused_is_asked_for_again() -> None:
    agent = agent_of("bad", "good")

    @agent.output_validator
    def check(output: str) -> str:
        if output == "bad":
            raise ModelRetry("another")
        return output

    async def work() -> Any:
        return (await agent.run("go")).output

    assert twice(work) == "good"


def test_dependencies_need_not_be_json() -> None:
    agent = agent_of([call("locked", "c1")], "ok", deps_type=type(threading.Lock()))

    @agent.tool
    async def locked(ctx: RunContext[Any]) -> bool:
        calls.append("locked")
        return bool(ctx.deps.locked())

    async def work() -> Any:
        return (await agent.run("go", deps=threading.Lock())).all_messages()[2].parts[0].content

    assert twice(work) is False


def test_a_model_may_be_made_from_its_name_and_the_dependencies() -> None:
    def make(ctx: Any, model_id: str) -> Any:
        return TestModel(custom_output_text=f"{model_id} for {ctx.deps}") if model_id.startswith("shop:") else None

    agent = agent_of("default", deps_type=str, capabilities=[ResolveModelId(make)])

    async def work() -> Any:
        return (await agent.run("go", deps="eva", model="shop:small")).output

    assert twice(work) == "shop:small for eva"


def test_settings_reach_the_model() -> None:
    async def respond(messages: Any, info: AgentInfo) -> Any:
        from pydantic_ai import ModelResponse, TextPart

        calls.append("request")
        return ModelResponse(parts=[TextPart(str((info.model_settings or {}).get("max_tokens")))])

    agent = Agent(FunctionModel(respond), name="agent", capabilities=[OutboxDurability()])

    async def work() -> Any:
        return (await agent.run("go", model_settings=ModelSettings(max_tokens=7))).output

    assert twice(work) == "7"


def test_the_framework_s_own_limits_hold_in_each_attempt() -> None:
    agent = agent_of([call("once", "c1", n=1)], "ok", tools=[once])

    async def work() -> Any:
        with pytest.raises(UsageLimitExceeded) as caught:
            await agent.run("go", usage_limits=UsageLimits(request_limit=1))
        return str(caught.value)

    twice(work)
    assert calls == ["request 1", 1]


def test_a_run_can_not_be_cancelled_by_a_token_and_a_tool_can_not_enqueue() -> None:
    agent = agent_of([call("enqueue", "c1")], "ok")

    @agent.tool
    async def enqueue(ctx: RunContext[Any]) -> None:
        ctx.enqueue("more")

    async def work() -> Any:
        with pytest.raises(UserError, match="cancellation_token"):
            await agent.run("go", cancellation_token=CancellationToken())
        with pytest.raises(UserError, match="enqueue"):
            await agent.run("go")

    twice(work)


def test_a_tool_has_a_key_that_is_the_same_in_every_attempt() -> None:
    agent = agent_of([call("key", "c1"), call("key", "c2")], "ok")
    keys: list[str] = []

    @agent.tool_plain
    async def key() -> str:
        keys.append(idempotency_key())
        return keys[-1]

    async def work() -> Any:
        return [part.content for part in (await agent.run("go")).all_messages()[2].parts]  # type: ignore[union-attr]

    assert twice(work) == keys
    assert len(set(keys)) == 2
    with pytest.raises(HandlerError, match="for the tools of an agent"):
        idempotency_key()


def test_a_run_with_a_timeout_counts_from_its_first_attempt() -> None:
    agent = agent_of("ok")

    async def handle(run: Run[Post]) -> None:
        await agent.run("go", timeout=3600)

    pipeline = one_stage(handle)
    kept = attempt(pipeline, "work", Post()).kept
    assert "run 1/start 1" in kept
    kept["run 1/start 1"] = "2020-01-01T00:00:00+00:00"
    with pytest.raises(RunTimedOut):
        attempt(pipeline, "work", Post(), attempt=2, kept={"run 1/start 1": kept["run 1/start 1"]})
