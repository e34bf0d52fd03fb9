"""Runs an agent of the OpenAI Agents SDK by its own runner and by ours. Its model and its tools answer at once."""

from __future__ import annotations

import json
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool, set_tracing_disabled
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from outbox import Pipeline, Run
from outbox.agents.openai import OutboxRunner

from .timed import Ran, seconds

DONE = ResponseOutputMessage(
    id="m", type="message", role="assistant", status="completed",
    content=[ResponseOutputText(type="output_text", text="done", annotations=[])],
)  # fmt: skip

set_tracing_disabled(True)  # it would send traces to OpenAI


class Calls(Model):
    """A model that asks for a tool `width` times at once, in each of its turns."""

    def __init__(self, turns: int, width: int) -> None:
        self.turns, self.width = turns, width

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
        turn = sum(item.get("type") == "function_call_output" for item in input) // self.width
        calls = [
            ResponseFunctionToolCall(
                type="function_call", name="add", call_id=f"call_{turn}_{n}", arguments=json.dumps({"n": n})
            )
            for n in range(self.width)
        ]
        return ModelResponse(output=[*calls] if turn < self.turns else [DONE], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("the SDK's Model demands it, and these runs are not streamed")


@function_tool
async def add(n: int) -> int:
    return n + 1


def pipeline(turns: int, width: int, ran: Ran) -> Pipeline[dict[str, Any]]:
    """Returns a pipeline whose agent calls a tool `width` times at once, in each of its turns."""
    agents: Pipeline[dict[str, Any]] = Pipeline("agents", initial="NEW", final={"DONE"})
    agent: Agent[Any] = Agent(name="bench", model=Calls(turns, width), tools=[add])

    @agents.stage("run", on="NEW", to="DONE", concurrency=1)
    async def run(run: Run[dict[str, Any]]) -> None:
        plain = await seconds(Runner.run(agent, "go", max_turns=None))
        ran(plain, await seconds(OutboxRunner.run(agent, "go", max_turns=None)))

    return agents
