"""Checks the times of waits. Each is a timedelta, counted by the database's clock."""

from __future__ import annotations

from datetime import timedelta

from ... import texts
from ...checks import MAX_NAME
from ...errors import InvalidInput
from ...texts import shown

LONGEST = timedelta(days=36_500)
"""The longest wait: a hundred years. Added to today, it is still a date in Python."""


def check_time(what: str, value: object, least: timedelta) -> None:
    """Raises InvalidInput, which names `what`, unless `value` is a timedelta from `least` to a hundred years."""
    if not isinstance(value, timedelta) or not least <= value <= LONGEST:
        raise InvalidInput(what, f"must be a timedelta from {least} to a hundred years, not {shown(value)}")


def check_timeout(what: str, value: object, where: str, status: str | None) -> None:
    """Raises InvalidInput unless a time and the status to which it leads are both given, or neither is.

    `what` and `where` are the names of the two parameters.
    """
    if (value is None) != (status is None):
        raise InvalidInput(where if status is None else what, f"{what} and {where} go together")
    if value is not None:
        check_time(what, value, timedelta(0))
        texts.check_text(status, where, MAX_NAME)


def seconds(value: timedelta | None) -> float | None:
    """Returns a time in seconds, as the database takes it."""
    return None if value is None else value.total_seconds()
