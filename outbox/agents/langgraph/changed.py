"""Finds out whether a graph's code has changed so that its stored state can't go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langgraph.checkpoint.serde.types import INTERRUPT, TASKS
from langgraph.pregel import Pregel
from langgraph.types import Send, StateSnapshot

from ...errors import AgentChanged

_NEXT = "branch:to:"
"""Begins the name of the channel that has a value if a node is next."""


def require_same(graph: Pregel[Any, Any, Any, Any], stored: Any, state: StateSnapshot) -> None:
    """Raises AgentChanged if a node is due, or was interrupted, that the graph doesn't have any more.

    LangGraph would leave it out, and end. `stored` is the last checkpoint, and `state` what the graph makes of it.
    """
    values = stored.checkpoint["channel_values"]
    due = [name.removeprefix(_NEXT) for name in values if name.startswith(_NEXT)]
    due += [each.node for each in values.get(TASKS, ()) if isinstance(each, Send)]
    if gone := next((name for name in due if name not in graph.nodes), None):
        raise AgentChanged(f"the node {gone} is next, but the graph doesn't have it any more: {_advice(graph.nodes)}")
    tasks = {task.id for task in state.tasks}
    finished = {task for task, channel, _ in stored.pending_writes or () if not channel.startswith("__")}
    for task, channel, _ in stored.pending_writes or ():
        if channel == INTERRUPT and task not in tasks | finished:
            raise AgentChanged(f"a node was interrupted that the graph doesn't have any more: {_advice(graph.nodes)}")


def _advice(nodes: Iterable[str]) -> str:
    there = ", ".join(sorted(name for name in nodes if not name.startswith("__")))
    return f"it has {there}. Bring the node back, or move the workflow to a first status: that begins with new input"
