"""A pipeline as the calls of this room take it: the Pipeline itself, which lies in a room above, or its name."""

from __future__ import annotations

from typing import Any, Protocol


class PipelineLike(Protocol):
    """The part of a Pipeline that the calls use."""

    @property
    def name(self) -> str: ...

    def dump_readable(self, data: Any) -> str:
        """Returns data as JSON text that the pipeline reads back, or raises InvalidInput."""


def name_of(pipeline: PipelineLike | str) -> str:
    """Returns the name of a pipeline, or the name itself."""
    return pipeline if isinstance(pipeline, str) else pipeline.name
