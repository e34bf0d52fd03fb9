"""Defines what `graph_stage` keeps of a graph in the data of a workflow."""

from __future__ import annotations

from pydantic import BaseModel

from ...definition.blob import Blob


class Thread(BaseModel):
    """Names a graph's state in a workflow's data: `thread: Thread = Thread()`.

    `state` is the state after the last turn, as JSON. `signal` is the interrupt that a signal is to answer.

    It is part of the data: who may write that may put another state in its place. People's answers are not in it.
    """

    state: Blob | None = None
    signal: str | None = None
