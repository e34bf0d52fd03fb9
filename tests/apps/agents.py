"""An agent in a pipeline, run by processes of which each kills itself at another point: `python -m apps.agents`.

The n-th process has the pipeline `cases n`, and ends by SIGKILL when its agent passes the n-th point: before and after
each model request and each call of a tool, which the world counts. The last process has no point, and takes over.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from kit import points
from kit.models import call
from outbox import Backoff, Pipeline, Run
from outbox.agents.pydantic_ai import OutboxDurability, Transcript, agent_stage

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

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(each, ModelResponse) for each in messages)
        await points.happens_async(f"request {turn}", entity)
        answer = ANSWERS[turn]
        return ModelResponse(parts=[TextPart(answer)] if isinstance(answer, str) else answer)

    agent = Agent(FunctionModel(respond), name="support", capabilities=[OutboxDurability()])

    @agent.tool_plain
    async def look_up(order: str) -> str:
        await points.happens_async(f"look_up {order}", entity)
        return "shipped"

    @agent.tool_plain(requires_approval=True, metadata={"outbox": {"effect": True}})
    async def refund(cents: int) -> str:
        await points.happens_async(f"refund {cents}", entity)
        return "paid"

    cases: Pipeline[Case] = Pipeline(f"cases {number}", data=Case, initial="NEW", final={"DONE"})

    @agent_stage(cases, agent, on="NEW", to="DONE", prompt=lambda case: "help", retry=Backoff(first=0.05, attempts=9))
    async def answered(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

    return cases


if __name__ == "__main__":
    points.run([pipeline(number) for number in range(POINTS + 1)])
