"""Describes a pipeline as the client calls accept it: a Pipeline, which this package can't import, or its name."""

from __future__ import annotations

from typing import Any, Protocol

from .. import documents, texts
from ..checks import MAX_NAME
from ..errors import InvalidInput


class PipelineLike(Protocol):
    """The part of a Pipeline that the client calls use."""

    @property
    def name(self) -> str: ...

    def dump_readable(self, data: Any) -> str:
        """Returns data as JSON text that the pipeline reads back, or raises InvalidInput."""


class Unchecked:
    """A pipeline whose code isn't here: the database checks its data as it checks that of any program."""

    def __init__(self, name: str) -> None:
        self.name = name

    def dump_readable(self, data: Any) -> str:
        """Returns data as JSON text."""
        return documents.dump_any(data, "data")


def name_of(pipeline: PipelineLike | str) -> str:
    """Returns the name of a pipeline, given as a Pipeline or by its name. Raises InvalidInput if it is neither."""
    name = pipeline if isinstance(pipeline, str) else getattr(pipeline, "name", None)
    if not isinstance(name, str):
        raise InvalidInput("pipeline", f"must be a Pipeline or its name, not {texts.shown(pipeline)}")
    return texts.check_text(name, "pipeline", MAX_NAME)
