"""Runs an agent of Pydantic AI, plain and durable, whose model and tools answer at once."""

from __future__ import annotations

from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Pipeline, Run
from outbox.agents.pydantic_ai import OutboxDurability

from .timed import Ran, seconds


def pipeline(turns: int, width: int, ran: Ran) -> Pipeline[dict[str, Any]]:
    """Returns a pipeline whose agent calls a tool `width` times at once, in each of its turns."""
    agents: Pipeline[dict[str, Any]] = Pipeline("agents", initial="NEW", final={"DONE"})
    plain, kept = agent(turns, width), agent(turns, width, OutboxDurability())

    @agents.stage("run", on="NEW", to="DONE", concurrency=1)
    async def run(run: Run[dict[str, Any]]) -> None:
        ran(await seconds(plain.run("go")), await seconds(kept.run("go")))

    return agents


def agent(turns: int, width: int, *capabilities: OutboxDurability[None]) -> Agent[None, str]:
    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn == turns:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("add", {"n": n}, f"call_{turn}_{n}") for n in range(width)])

    made = Agent(FunctionModel(respond), name="bench", capabilities=capabilities)

    @made.tool_plain
    async def add(n: int) -> int:
        return n + 1

    return made
