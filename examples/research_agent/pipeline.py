"""A research agent of Pydantic AI in one stage: it searches in several places at once, reads what it finds, and writes.

ASKED -> research -> ANSWERED

    outbox deploy --app examples.research_agent.pipeline:questions
    outbox worker --app examples.research_agent.pipeline:questions
    outbox submit --pipeline questions <<< '{"entity_id": "cats", "metadata": {"topic": "cats"}}'

If the worker dies, the next attempt goes on from the last request or tool call that has ended. `model` stands for a
model that costs money. Replace it with your own: `Agent("openai:…", …)`.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Backoff, Pipeline, Run
from outbox.agents.pydantic_ai import Budget, OutboxDurability, durable


class Question(BaseModel):
    topic: str
    answer: str | None = None


PLACES = ("news", "papers", "forum")


async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Searches everywhere at once, reads the first page of each place at once, and writes."""
    results = [part for each in messages for part in each.parts if isinstance(part, ToolReturnPart)]
    pages = [part for part in results if part.tool_name == "read"]
    found = [part for part in results if part.tool_name == "search"]
    if pages:
        return ModelResponse(parts=[TextPart(" ".join(str(page.content) for page in pages))])
    if found:
        urls = [url for part in found for url in part.content[:1]]
        calls = [ToolCallPart("read", {"url": url}, f"read_{n}") for n, url in enumerate(urls)]
        return ModelResponse(parts=calls)
    return ModelResponse(parts=[ToolCallPart("search", {"place": place}, f"search_{place}") for place in PLACES])


agent = Agent(
    FunctionModel(model),
    name="research",
    instructions="Search in all places, read the best page of each, and answer in one paragraph.",
    capabilities=[OutboxDurability()],
)


@agent.tool_plain(metadata={"outbox": {"timeout": timedelta(seconds=30), "retry": Backoff(first=0.5, attempts=5)}})
async def search(place: str) -> list[str]:
    """Finds pages in one place. A search that fails is tried again by itself; the others go on meanwhile."""
    await asyncio.sleep(0.01)
    return [f"https://{place}.example/{n}" for n in (1, 2)]


@agent.tool_plain(metadata={"outbox": {"timeout": timedelta(seconds=30), "retry": Backoff(first=0.5, attempts=5)}})
async def read(url: str) -> str:
    await asyncio.sleep(0.01)
    return f"{url} says that they sleep."


questions = Pipeline("questions", data=Question, initial="ASKED", final={"ANSWERED"})


@questions.stage("research", on="ASKED", to="ANSWERED", timeout=600, retry=Backoff(first=1, max=60, attempts=10))
async def research(run: Run[Question]) -> Question:
    with durable(run, budget=Budget(requests=20)):
        result = await agent.run(f"What is new about {run.data.topic}?")
    return run.data.model_copy(update={"answer": result.output})
