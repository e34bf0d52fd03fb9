"""Runs a graph of LangGraph, plain and as a stage, whose nodes return at once."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypedDict, cast

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from outbox import Pipeline, Run
from outbox.agents.langgraph import graph_stage

from .timed import Ran, seconds


class State(TypedDict, total=False):
    turn: int
    added: Annotated[list[int], operator.add]


def pipeline(turns: int, width: int, ran: Ran) -> Pipeline[dict[str, Any]]:
    """Returns a pipeline whose graph runs as many nodes, in turns, as an agent makes requests and calls of tools."""
    plain, config = graph(turns, width), {"recursion_limit": 2 * turns + 2}
    started = 0.0

    @contextmanager
    def clocked(run: Run[Any]) -> Iterator[None]:
        nonlocal started
        started = time.perf_counter()
        yield

    agents: Pipeline[dict[str, Any]] = Pipeline("agents", initial="NEW", final={"DONE"}, around=clocked)

    @graph_stage(
        agents, graph(turns, width), name="run", on="NEW", to="DONE", input=lambda data: {"turn": 0}, config=config,
        concurrency=1,
    )  # fmt: skip
    async def ended(run: Run[dict[str, Any]], output: Any) -> None:
        kept = time.perf_counter() - started
        ran(await seconds(plain.ainvoke({"turn": 0}, config)), kept)

    return agents


def graph(turns: int, width: int) -> Any:
    async def model(state: State) -> State:
        return {"turn": state["turn"] + 1}

    async def add(given: Any) -> State:
        return {"added": [given["n"] + 1]}

    def asked(state: State) -> Any:
        return [Send("add", {"n": n}) for n in range(width)] if state["turn"] <= turns else END

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("add", cast("Any", add))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", asked, ["add", END])
    builder.add_edge("add", "model")
    return builder.compile(name="bench")
