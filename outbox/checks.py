"""Checks of the values that callers give, each with an error that names the value."""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from .errors import DefinitionError
from .texts import shown

MAX_QUESTION = 10_000


MAX_NAME = 255


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/ -]{0,62}(?<! )")


def check_name(name: object, what: str) -> str:
    """Return `name` if a pipeline, stage or status may have it; else DefinitionError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DefinitionError(
            f"{what} {shown(name)}: a name has 1 to 63 letters, digits, spaces or any of _.:/- "
            "and begins with a letter, a digit or _"
        )
    return name


def is_wait(seconds: object) -> TypeGuard[float]:
    """Whether a job can be put off by so much."""
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= 1e9


def check_whole(value: object, what: str, most: int) -> None:
    """Raise DefinitionError, which begins with `what`, unless `value` is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise DefinitionError(f"{what}{shown(value)} is not a whole number from 1 to {most:,}")


def check_number(value: Any, what: str, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise DefinitionError(f"{what}: {shown(value)} is not a number from {low:g} to {high:g}")
