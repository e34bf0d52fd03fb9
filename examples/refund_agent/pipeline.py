"""Two agents of the OpenAI Agents SDK. One looks up the order; the other one refunds, which is a question to a person.

NEW -> desk -> ANSWERED_CUSTOMER
            -> WAITING_FOR_APPROVAL -> (a person, or two days) -> ANSWERED -> desk

    outbox deploy --app examples.refund_agent.pipeline:cases
    outbox worker --app examples.refund_agent.pipeline:cases
    outbox submit --pipeline cases <<< '{"entity_id": "case_7", "metadata": {"customer": "eva", "message": "Lost?"}}'
    outbox approve case_7 --by sarah --about '{"order": "7", "cents": 500}'

`ScriptedModel` stands for models that cost money. Leave out `model=` for those of OpenAI.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agents import Agent, Model, ModelResponse, RunContextWrapper, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from pydantic import BaseModel

from outbox import Backoff, Pipeline, Run
from outbox.agents.openai import Budget, Transcript, agent_stage, tool_policy


class Case(BaseModel):
    customer: str
    message: str
    answer: str | None = None
    transcript: Transcript = Transcript()


@dataclass
class Customer:
    """What the tools know, and the model doesn't decide."""

    name: str


class ScriptedModel(Model):
    """Looks up the order and the parcel at once, hands off, asks for a refund, and answers with what became of it."""

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **kwargs: Any) -> ModelResponse:
        results = {item["call_id"]: item["output"] for item in input if "output" in item}
        if not results:
            output: list[Any] = [
                _call("call_1", "find_order", order="7"),
                _call("call_2", "track_parcel", order="7"),
            ]
        elif "call_3" not in results:
            output = [_call("call_3", "transfer_to_refunds")]
        elif "call_4" not in results:
            output = [_call("call_4", "refund", order="7", cents=1999)]
        else:
            output = [_text(f"Your parcel is lost, I am sorry. {results['call_4']}")]
        return ModelResponse(output=output, usage=Usage(requests=1, total_tokens=100), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


def _call(id_: str, tool: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(type="function_call", call_id=id_, name=tool, arguments=json.dumps(arguments))


def _text(said: str) -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=said, annotations=[])
    return ResponseOutputMessage(id="1", type="message", role="assistant", status="completed", content=[content])


@function_tool
async def find_order(ctx: RunContextWrapper[Customer], order: str) -> dict[str, int | str]:
    return {"order": order, "customer": ctx.context.name, "cents": 1999}


@function_tool
async def track_parcel(order: str) -> str:
    return "lost"


@tool_policy(effect=True)
@function_tool(needs_approval=True)
async def refund(order: str, cents: int) -> str:
    """Pays money back. It is called after a person has approved, with the arguments that the person has left."""
    return f"We have sent you {cents} cents."


refunds = Agent[Customer](
    name="refunds",
    model=ScriptedModel(),
    instructions="You may refund what customers have paid.",
    tools=[refund],
)

desk = Agent[Customer](
    name="desk",
    model=ScriptedModel(),
    instructions="You help customers.",
    tools=[find_order, track_parcel],
    handoffs=[refunds],
)

cases = Pipeline("cases", data=Case, initial="NEW", final={"ANSWERED_CUSTOMER", "GIVEN_UP"})


@agent_stage(
    cases,
    desk,
    on="NEW",
    to="ANSWERED_CUSTOMER",
    prompt=lambda case: case.message,
    context=lambda run: Customer(run.data.customer),
    deadline=timedelta(days=2),
    budget=Budget(workflow_requests=30, workflow_tokens=200_000),
    on_budget="GIVEN_UP",
    retry=Backoff(first=1, max=60, attempts=10),
)
async def answer(run: Run[Case], output: str) -> Case:
    run.publish("support.answered", {"case": run.entity_id, "answer": output})
    return run.data.model_copy(update={"answer": output})
