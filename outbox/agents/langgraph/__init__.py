"""Makes graphs of LangGraph durable: `graph_stage(pipeline, graph, …)`. See docs/agents.md."""

from .errors import InterruptRefused, NodeError, StateRefused, StateTooLarge
from .stage import graph_stage
from .thread import Thread

__all__ = ["InterruptRefused", "NodeError", "StateRefused", "StateTooLarge", "Thread", "graph_stage"]
