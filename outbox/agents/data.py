"""Reads and writes what a stage keeps of an agent or a graph: fields of a workflow's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from ..definition.outcome import Go
from ..definition.waits.wait import Wait

Data = TypeVar("Data")
Kept = TypeVar("Kept", bound=BaseModel)


def value(data: Any, field: str) -> Any:
    """Returns a field of the data, or what is under this key of a plain JSON object; None if there is nothing."""
    return data.get(field) if isinstance(data, Mapping) else getattr(data, field)


def read(kept: type[Kept], data: Any, field: str) -> Kept:
    """Returns what is kept in a field of the data, or under a key of a plain JSON object."""
    found = value(data, field)
    return kept() if found is None else kept.model_validate(found)


def write(data: Data, values: Mapping[str, Any]) -> Data:
    """Returns the data with other values in some fields, by their names."""
    if isinstance(data, BaseModel):
        return data.model_copy(update=values)
    if is_dataclass(data) and not isinstance(data, type):
        return replace(data, **values)
    plain = {
        name: each.model_dump(mode="json") if isinstance(each, BaseModel) else each for name, each in values.items()
    }
    return cast(Data, {**cast("dict[str, Any]", data), **plain})


def with_data(outcome: Any, data: Any, ends: frozenset[str]) -> Any:
    """Returns what a function has returned, with the data it was given, and with its status if there is only one."""
    end = min(ends) if len(ends) == 1 else None
    if not isinstance(outcome, Wait):
        data = data if outcome is None else outcome
        return data if end is None else Go(end, data)
    given: Any = outcome
    return replace(given, status=outcome.status or end, data=data if outcome.data is None else outcome.data)
