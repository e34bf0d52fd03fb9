"""Reads and writes what a stage keeps of an agent: one field of a workflow's data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from ..definition.outcome import Go
from ..definition.waits.wait import Wait

Data = TypeVar("Data")
Kept = TypeVar("Kept", bound=BaseModel)


def read(kept: type[Kept], data: Any, field: str) -> Kept:
    """Returns what is kept in a field of the data, or under a key of a plain JSON object."""
    found = data.get(field) if isinstance(data, Mapping) else getattr(data, field)
    return kept() if found is None else kept.model_validate(found)


def write(data: Data, field: str, value: BaseModel) -> Data:
    """Returns the data with another value in the field."""
    if isinstance(data, BaseModel):
        return data.model_copy(update={field: value})
    if is_dataclass(data) and not isinstance(data, type):
        return replace(data, **{field: value})
    written: Any = {**cast("dict[str, Any]", data), field: value.model_dump(mode="json")}
    return cast(Data, written)


def with_data(outcome: Any, data: Any, ends: frozenset[str]) -> Any:
    """Returns what a function has returned, with the data it was given, and with its status if there is only one."""
    end = min(ends) if len(ends) == 1 else None
    if not isinstance(outcome, Wait):
        data = data if outcome is None else outcome
        return data if end is None else Go(end, data)
    given: Any = outcome
    return replace(given, status=outcome.status or end, data=data if outcome.data is None else outcome.data)
