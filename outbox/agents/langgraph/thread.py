"""Defines what `graph_stage` keeps of a graph in the data of a workflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from ...definition.blob import Blob

Data = TypeVar("Data")


class Thread(BaseModel):
    """Names a graph's state in a workflow's data: `thread: Thread = Thread()`.

    `state` is the state after the last turn, as JSON. `signal` is the interrupt that a signal is to answer.

    It is part of the data: who may write that may put another state in its place. People's answers are not in it.
    """

    state: Blob | None = None
    signal: str | None = None


def thread_in(data: Any, field: str) -> Thread:
    """Returns the thread in a workflow's data: in a field, or under a key of a plain JSON object."""
    found = value_in(data, field)
    return Thread() if found is None else Thread.model_validate(found)


def value_in(data: Any, field: str) -> Any:
    """Returns a field of a workflow's data."""
    return data.get(field) if isinstance(data, Mapping) else getattr(data, field)


def with_values(data: Data, **values: Any) -> Data:
    """Returns the data with other values in some fields."""
    if isinstance(data, BaseModel):
        return data.model_copy(update=values)
    if is_dataclass(data) and not isinstance(data, type):
        return replace(data, **values)
    plain = {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value for name, value in values.items()
    }
    return cast(Data, {**cast("dict[str, Any]", data), **plain})
