"""A graph of LangGraph. It looks up the order and the parcel at once; a refund is a question to a person first.

NEW -> refund -> CLOSED
              -> WAITING_FOR_ANSWER -> (a person, or two days) -> ANSWERED -> refund

    outbox deploy --app examples.refund_graph.pipeline:refunds
    outbox worker --app examples.refund_graph.pipeline:refunds
    outbox submit --pipeline refunds <<< '{"entity_id": "case_7", "metadata": {"order": "7", "message": "Lost?"}}'
    outbox decide case_7 yes --by sarah --about '{"cents": 500}'

`write` stands for a node that calls a model and costs money. Put your own in its place.
"""

from __future__ import annotations

import operator
from datetime import timedelta
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel

from outbox import Backoff, Pipeline, Run
from outbox.agents.langgraph import Thread, graph_stage


class Case(BaseModel):
    order: str
    message: str
    answer: str | None = None
    thread: Thread = Thread()


class State(TypedDict, total=False):
    order: str
    message: str
    found: Annotated[list[str], operator.add]
    cents: int
    answer: str


def find_order(state: State) -> State:
    return {"found": [f"order {state['order']}: 1999 cents"]}


async def track_parcel(state: State) -> State:
    return {"found": ["parcel: lost"]}


def ask(state: State) -> State:
    """Asks a person. It runs again from its beginning when the answer is there, so nothing else is done here."""
    answer = interrupt({
        "question": "Refund it?", "options": ["yes", "no"], "about": {"cents": 1999, "found": state["found"]},
        "assignee": "sarah",
    })  # fmt: skip
    return {"cents": answer["about"]["cents"] if answer["decision"] == "yes" else 0}


def write(state: State) -> State:
    if not state["cents"]:
        return {"answer": "We are looking for your parcel."}
    return {"answer": f"Your parcel is lost, I am sorry. We send you {state['cents']} cents."}


builder = StateGraph(State)
for node in (find_order, track_parcel, ask, write):
    builder.add_node(node.__name__, node)
builder.add_edge(START, "find_order")
builder.add_edge(START, "track_parcel")
builder.add_edge(["find_order", "track_parcel"], "ask")
builder.add_edge("ask", "write")
builder.add_edge("write", END)

refunds = Pipeline("refunds", data=Case, initial="NEW", final={"CLOSED"})


@graph_stage(
    refunds,
    builder.compile(name="refund"),
    on="NEW",
    to="CLOSED",
    input=lambda case: {"order": case.order, "message": case.message},
    deadline=timedelta(days=2),
    retry=Backoff(first=1, max=60, attempts=10),
)
async def close(run: Run[Case], output: dict[str, Any]) -> Case:
    run.publish("refunds.closed", {"case": run.entity_id, "answer": output["answer"]})
    return run.data.model_copy(update={"answer": output["answer"]})
