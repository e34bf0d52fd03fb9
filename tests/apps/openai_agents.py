"""An agent of the OpenAI Agents SDK, run by processes that kill themselves: `python -m apps.openai_agents`.

The n-th process has the pipeline `cases n`, and ends by SIGKILL when its agent passes the n-th point: before and after
each model request and each call of a tool, which the world counts. The last process has no point, and takes over.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import psycopg
from agents import Agent, ModelResponse, function_tool
from pydantic import BaseModel

from kit.openai_models import Script, call, turn_of
from outbox import Backoff, Pipeline, Run, Worker
from outbox.agents.openai import Transcript, agent_stage, tool_policy

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

    class Model(Script):
        async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
            await happens(f"request {turn_of(input)}", entity)
            return await super().get_response(system_instructions, input, *args, **kwargs)

    @function_tool
    async def look_up(order: str) -> str:
        await happens(f"look_up {order}", entity)
        return "shipped"

    @tool_policy(effect=True)
    @function_tool(needs_approval=True)
    async def refund(cents: int) -> str:
        await happens(f"refund {cents}", entity)
        return "paid"

    agent = Agent[Any](name="support", model=Model(*ANSWERS), tools=[look_up, refund])
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
