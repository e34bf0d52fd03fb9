"""Reports how far a graph is, from what it streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...definition.run import MAX_PROGRESS, Run
from ...texts import clean


def progress(run: Run[Any], namespace: Sequence[str], mode: str, chunk: Any) -> None:
    """Reports a task that begins, by the names of its node and of the nodes whose subgraphs it is in.

    A text that a node writes by `get_stream_writer()` is reported as it is.
    """
    text = chunk if mode == "custom" and isinstance(chunk, str) else None
    if mode == "tasks" and "result" not in chunk:
        text = " > ".join([*(each.partition(":")[0] for each in namespace), chunk["name"]])
    if text and not text.isspace():
        run.progress(clean(text)[:MAX_PROGRESS])
