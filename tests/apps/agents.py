"""An agent in a pipeline, run by processes of which each kills itself at another point: `python -m apps.agents`.

The n-th process has the pipeline `cases n`, and ends by SIGKILL when its agent passes the n-th point: before and after
each model request and each call of a tool, which the world counts. The last process has no point, and takes over.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import psycopg
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from kit.models import call
from outbox import Backoff, Pipeline, Run, Worker
from outbox.agents.pydantic_ai import OutboxDurability, Transcript, agent_stage

POINTS = 12
"""Before and after each of three model requests, two calls in parallel, and one that a person approves."""

ANSWERS: list[Any] = [
    [call("look_up", "l1", order="7"), call("look_up", "l2", order="8")],
    [call("refund", "r", cents=900)],
    "done",
]
left = 0


class Case(BaseModel):
    answer: str | None = None
    transcript: Transcript = Transcript()


async def happens(what: str, entity: str) -> None:
    point()
    async with await psycopg.AsyncConnection.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        await world.execute("INSERT INTO outbox.calls (entity, what) VALUES (%s, %s)", (entity, what))
    point()


def point() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def pipeline(number: int) -> Pipeline[Case]:
    entity = str(number)

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        turn = sum(isinstance(each, ModelResponse) for each in messages)
        await happens(f"request {turn}", entity)
        answer = ANSWERS[turn]
        return ModelResponse(parts=[TextPart(answer)] if isinstance(answer, str) else answer)

    agent = Agent(FunctionModel(respond), name="support", capabilities=[OutboxDurability()])

    @agent.tool_plain
    async def look_up(order: str) -> str:
        await happens(f"look_up {order}", entity)
        return "shipped"

    @agent.tool_plain(requires_approval=True, metadata={"outbox": {"effect": True}})
    async def refund(cents: int) -> str:
        await happens(f"refund {cents}", entity)
        return "paid"

    cases: Pipeline[Case] = Pipeline(f"cases {number}", data=Case, initial="NEW", final={"DONE"})

    @agent_stage(cases, agent, on="NEW", to="DONE", prompt=lambda case: "help", retry=Backoff(first=0.05, attempts=9))
    async def answered(run: Run[Case], output: str) -> Case:
        return run.data.model_copy(update={"answer": output})

    return cases


def main() -> None:
    global left
    pipelines = [pipeline(number) for number in range(POINTS + 1)]
    children = []
    for number, mine in enumerate(pipelines):
        if (child := os.fork()) == 0:
            left = number
            asyncio.run(Worker(mine, os.environ["OUTBOX_DSN"]).run())
            os._exit(1)
        children.append(child)
    for child in children[1:]:
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    os.kill(children[0], signal.SIGKILL)
    asyncio.run(Worker(pipelines, os.environ["OUTBOX_DSN"]).run())


if __name__ == "__main__":
    main()
