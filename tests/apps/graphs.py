"""A graph in a pipeline, run by processes of which each kills itself at another point: `python -m apps.graphs`.

The n-th process has the pipeline `graphs n`, and ends by SIGKILL when its graph passes the n-th point: before and after
each node, which the world counts, and before its output is returned. The last process has no point, and takes over.
"""

from __future__ import annotations

import asyncio
import operator
import os
import signal
from typing import Annotated, Any, TypedDict

import psycopg
from langgraph.graph import START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel

from outbox import Backoff, Pipeline, Run, Worker
from outbox.agents.langgraph import Thread, graph_stage

POINTS = 15
"""Before and after each of seven nodes, and before the graph's output is returned."""

left = 0


class Case(BaseModel):
    said: list[str] = []
    thread: Thread = Thread()


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def happens(what: str, entity: str) -> None:
    point()
    with psycopg.connect(os.environ["OUTBOX_DSN"], autocommit=True) as world:
        world.execute("INSERT INTO outbox.calls (entity, what) VALUES (%s, %s)", (entity, what))
    point()


def point() -> None:
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def graph(entity: str) -> Any:
    """first -> two branches, of which one is a subgraph that asks twice -> last."""

    def node(name: str) -> Any:
        def run(state: State) -> State:
            happens(name, entity)
            return {"said": [name]}

        return run

    def ask(state: State) -> State:
        one, two = interrupt("one?"), interrupt("two?")
        happens("ask", entity)
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
        point()
        return run.data.model_copy(update={"said": output["said"]})

    return graphs


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
