"""A graph whose second node waits at a gate if the process is told to, and says who has run it."""

from __future__ import annotations

import operator
import os
import time
from typing import Annotated, Any, TypedDict

import psycopg
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

from outbox import Backoff, Pipeline, Run
from outbox.agents.langgraph import graph_stage


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def slow(state: State) -> State:
    with psycopg.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        world.execute("INSERT INTO outbox.calls VALUES (%s)", (os.environ["WHO"],))
        while os.environ.get("GATE") and not world.execute("SELECT FROM outbox.gate").fetchall():
            time.sleep(0.01)
    return {"said": [os.environ["WHO"]]}


builder = StateGraph(State)
builder.add_sequence(
    [
        ("first", lambda state: {"said": ["first"]}),
        ("slow", slow),
        ("ask", lambda state: {"said": [interrupt("Go on?")["decision"]]}),
    ]
)
builder.add_edge(START, "first")
gated: Pipeline[Any] = Pipeline("gated", data=dict, initial="NEW", final={"DONE"})


@graph_stage(
    gated,
    builder.compile(name="graph"),
    on="NEW",
    to="DONE",
    input=lambda data: {"said": []},
    retry=Backoff(first=0.05, attempts=9),
)
def ended(run: Run[Any], output: dict[str, Any]) -> Any:
    return {**run.data, "said": output["said"]}
