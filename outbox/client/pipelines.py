"""Describes a pipeline as the client calls accept it: a Pipeline, which this package can't import, or its name."""

from __future__ import annotations

from typing import Any, Protocol


class PipelineLike(Protocol):
    """The part of a Pipeline that the client calls use."""

    @property
    def name(self) -> str: ...

    def dump_readable(self, data: Any) -> str:
        """Returns data as JSON text that the pipeline reads back, or raises InvalidInput."""


def name_of(pipeline: PipelineLike | str) -> str:
    """Returns the name of a pipeline that is given as a Pipeline or by its name."""
    return pipeline if isinstance(pipeline, str) else pipeline.name
