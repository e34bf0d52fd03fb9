"""A support agent of Pydantic AI. It looks up orders by itself; a refund is a question to a person first.

NEW -> support -> ANSWERED_CUSTOMER
               -> WAITING_FOR_APPROVAL -> (a person, or two days) -> ANSWERED -> support

    outbox deploy --app examples.support_agent.pipeline:cases
    outbox worker --app examples.support_agent.pipeline:cases
    outbox submit --pipeline cases <<< '{"entity_id": "case_7", "metadata": {"customer": "eva", "message": "Lost?"}}'
    outbox approve case_7 --by sarah --about '{"order": "7", "cents": 500}'

`model` stands for a model that costs money. Replace it with your own: `Agent("openai:…", …)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from outbox import Backoff, Pipeline, Run
from outbox.agents.pydantic_ai import Budget, OutboxDurability, Transcript, agent_stage


class Case(BaseModel):
    customer: str
    message: str
    answer: str | None = None
    transcript: Transcript = Transcript()


@dataclass
class Customer:
    """What the tools know, and the model doesn't decide."""

    name: str


async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Looks up the order and the parcel at once, asks for a refund, and answers with what has become of it."""
    results = {part.tool_name: part for each in messages for part in each.parts if isinstance(part, ToolReturnPart)}
    if not results:
        return ModelResponse(
            parts=[
                ToolCallPart("find_order", {"order": "7"}, "call_1"),
                ToolCallPart("track_parcel", {"order": "7"}, "call_2"),
            ]
        )
    if "refund" not in results:
        return ModelResponse(parts=[ToolCallPart("refund", {"order": "7", "cents": 1999}, "call_3")])
    return ModelResponse(parts=[TextPart(f"Your parcel is lost, I am sorry. {results['refund'].content}")])


agent = Agent(
    FunctionModel(model),
    name="support",
    deps_type=Customer,
    instructions="You help customers. You may refund what they have paid.",
    capabilities=[OutboxDurability()],
)


@agent.tool
async def find_order(ctx: RunContext[Customer], order: str) -> dict[str, int | str]:
    return {"order": order, "customer": ctx.deps.name, "cents": 1999}


@agent.tool_plain
async def track_parcel(order: str) -> str:
    return "lost"


@agent.tool(requires_approval=True, metadata={"outbox": {"effect": True}})
async def refund(ctx: RunContext[Customer], order: str, cents: int) -> str:
    """Pays money back. It is called after a person has approved, with the arguments that the person has left."""
    return f"We have sent you {cents} cents."


cases = Pipeline("cases", data=Case, initial="NEW", final={"ANSWERED_CUSTOMER", "GIVEN_UP"})


@agent_stage(
    cases,
    agent,
    on="NEW",
    to="ANSWERED_CUSTOMER",
    prompt=lambda case: case.message,
    deps=lambda run: Customer(run.data.customer),
    deadline=timedelta(days=2),
    budget=Budget(workflow_requests=30, workflow_tokens=200_000),
    on_budget="GIVEN_UP",
    retry=Backoff(first=1, max=60, attempts=10),
)
async def answer(run: Run[Case], output: str) -> Case:
    run.publish("support.answered", {"case": run.entity_id, "answer": output})
    return run.data.model_copy(update={"answer": output})
