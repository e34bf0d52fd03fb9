"""A graph in a pipeline, run by processes of which each kills itself at another point: `python -m apps.graphs`.

The n-th process has the pipeline `graphs n`, and ends by SIGKILL when its graph passes the n-th point: before and after
each node, which the world counts, and before its output is returned. The last process has no point, and takes over.
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel

from kit import points
from outbox import Backoff, Pipeline, Run
from outbox.agents.langgraph import Thread, graph_stage

POINTS = 15
"""Before and after each of seven nodes, and before the graph's output is returned."""


class Case(BaseModel):
    said: list[str] = []
    thread: Thread = Thread()


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def graph(entity: str) -> Any:
    """first -> two branches, of which one is a subgraph that asks twice -> last."""

    def node(name: str) -> Any:
        def run(state: State) -> State:
            points.happens(name, entity)
            return {"said": [name]}

        return run

    def ask(state: State) -> State:
        one, two = interrupt("one?"), interrupt("two?")
        points.happens("ask", entity)
        return {"said": [f"{one['decision']} {two['decision']}"]}

    inner = StateGraph(State)
    inner.add_sequence([("before", node("before")), ("ask", ask), ("after", node("after"))])
    inner.add_edge(START, "before")
    outer = StateGraph(State)
    outer.add_node("first", node("first"))
    outer.add_node("beside", node("beside"))
    outer.add_node("inner", lambda state: {"said": compiled.invoke({"said": []})["said"]})
    outer.add_sequence([("last", node("last")), ("end", node("end"))])
    compiled = inner.compile(name="inner")
    outer.add_edge(START, "first")
    outer.add_edge("first", "beside")
    outer.add_edge("first", "inner")
    outer.add_edge(["beside", "inner"], "last")
    return outer.compile(name="graph")


def pipeline(number: int) -> Pipeline[Case]:
    graphs: Pipeline[Case] = Pipeline(f"graphs {number}", data=Case, initial="NEW", final={"DONE"})

    @graph_stage(
        graphs,
        graph(str(number)),
        on="NEW",
        to="DONE",
        input=lambda case: {"said": []},
        retry=Backoff(first=0.05, attempts=9),
    )
    async def ended(run: Run[Case], output: dict[str, Any]) -> Case:
        points.point()
        return run.data.model_copy(update={"said": output["said"]})

    return graphs


if __name__ == "__main__":
    points.run([pipeline(number) for number in range(POINTS + 1)])
