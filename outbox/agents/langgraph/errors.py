"""Defines what ends the job of a graph, so that it is not tried again, and what stands for a node's earlier error."""

from __future__ import annotations

from typing import Any

from ...definition.outcome import Reject


class StateRefused(Reject):
    """A part of a graph's state can't be stored. `where` names the channel or the node, and `problem` says why.

    Keep values in the state that JSON can hold, or name their classes in `types=` of `graph_stage`.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem

    def __reduce__(self) -> Any:
        return type(self), (self.where, self.problem)


class StateTooLarge(Reject):
    """A graph's state is larger than what is stored of it at once. `where` names the channel or the node.

    `size` and `limit` are in bytes of JSON. Store large contents by `run.store`, and keep their handles in the state.
    """

    def __init__(self, where: str, size: int, limit: int) -> None:
        super().__init__(f"{where} has {size:,} bytes of JSON; the limit is {limit:,}")
        self.where = where
        self.size = size
        self.limit = limit

    def __reduce__(self) -> Any:
        return type(self), (self.where, self.size, self.limit)


class InterruptRefused(Reject):
    """What a node has given to `interrupt()` can't be asked. The message says what is wrong with it."""


class NodeError(Exception):
    """Stands for an exception that a node has raised in an earlier attempt. `kind` is the name of its class.

    Only its text was stored. A node's error handler gets it if the process has died meanwhile.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind
        self.text = text

    def __reduce__(self) -> Any:
        return type(self), (self.kind, self.text)
