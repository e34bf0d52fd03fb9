"""An agent of the OpenAI Agents SDK, run by processes that kill themselves: `python -m apps.openai_agents`.

The n-th process has the pipeline `cases n`, and ends by SIGKILL when its agent passes the n-th point: before and after
each model request and each call of a tool, which the world counts. The last process has no point, and takes over.
"""

from __future__ import annotations

from typing import Any

from agents import Agent, ModelResponse, function_tool
from pydantic import BaseModel

from kit import points
from kit.openai_models import Script, call, turn_of
from outbox import Backoff, Pipeline, Run
from outbox.agents.openai import Transcript, agent_stage, tool_policy

POINTS = 12
"""Before and after each of three model requests, two calls in parallel, and one that a person approves."""

ANSWERS: list[Any] = [
    [call("look_up", "l1", order="7"), call("look_up", "l2", order="8")],
    [call("refund", "r", cents=900)],
    "done",
]


class Case(BaseModel):
    answer: str | None = None
    transcript: Transcript = Transcript()


def pipeline(number: int) -> Pipeline[Case]:
    entity = str(number)

    class Model(Script):
        async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
            await points.happens_async(f"request {turn_of(input)}", entity)
            return await super().get_response(system_instructions, input, *args, **kwargs)

    @function_tool
    async def look_up(order: str) -> str:
        await points.happens_async(f"look_up {order}", entity)
        return "shipped"

    @tool_policy(effect=True)
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        await points.happens_async(f"refund {cents}", entity)
        return "paid"

    agent = Agent[Any](name="support", model=Model(*ANSWERS), tools=[look_up, refund])
    cases: Pipeline[Case] = Pipeline(f"cases {number}", data=Case, initial="NEW", final={"DONE"})

    @agent_stage(cases, agent, on="NEW", to="DONE", prompt=lambda case: "help", retry=Backoff(first=0.05, attempts=9))
    async def answered(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

    return cases


if __name__ == "__main__":
    points.run([pipeline(number) for number in range(POINTS + 1)])
