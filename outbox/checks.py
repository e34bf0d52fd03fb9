"""Checks the values that callers pass in. Each error names the value."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, TypeGuard

from .errors import DefinitionError
from .texts import shown

MAX_NAME = 255
"""The longest name of a signal, a person or the like, in characters. People write and read these names."""

MAX_QUESTION = 10_000
"""The longest question or reason, in characters: a few pages, as much as a person reads before a decision."""

MAX_DELAY = 1e9
"""The longest delay before a retry, in seconds: 31 years. A date computed from it still fits Python's datetime."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,62}(?<! )")
"""A name in a definition: at most 63 characters, as in Postgres, and none that SQL or a terminal interprets."""


def check_name(name: object, what: str) -> str:
    """Returns `name` if a pipeline, stage or status may have it. Raises DefinitionError, which begins with `what`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{what} {shown(name)}: a name has 1 to 63 letters, digits, spaces or any of _.:/- "
            "and begins with a letter, a digit or _"
        )
    return name


def check_whole(value: object, what: str, most: int) -> None:
    """Raises DefinitionError, which begins with `what`, unless `value` is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise DefinitionError(f"{what}{shown(value)} is not a whole number from 1 to {most:,}")


def check_number(value: Any, what: str, low: float, high: float) -> None:
    """Raises DefinitionError, which begins with `what`, unless `value` is a number from `low` to `high`."""
    if not _is_number(value) or not low <= value <= high:
        raise DefinitionError(f"{what}: {shown(value)} is not a number from {low:g} to {high:g}")


def check_seconds(value: float | timedelta, what: str, low: float, high: float) -> float:
    """Returns the seconds of a time given as seconds or as a timedelta.

    Raises DefinitionError, which begins with `what`, unless the time is from `low` to `high` seconds.
    """
    seconds = _seconds(value)
    if seconds is None or not low <= seconds <= high:
        raise DefinitionError(f"{what}: {shown(value)} is not a time from {low:g} to {high:g} seconds")
    return float(seconds)


def as_delay(value: object) -> float | None:
    """Returns the seconds of a delay given as seconds or as a timedelta. None if it isn't from 0 to MAX_DELAY."""
    seconds = _seconds(value)
    return float(seconds) if seconds is not None and 0 <= seconds <= MAX_DELAY else None


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value if _is_number(value) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
