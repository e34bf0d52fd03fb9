"""Defines the wait for a signal from another system."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ... import texts
from ...checks import MAX_NAME
from .times import check_timeout, seconds
from .wait import Wait, WaitJson

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class WaitForSignal(Wait[Data]):
    """Returned by a handler: waits in `status` for the signal `name`.

    The signal moves the workflow to `to`. A signal that was sent before is taken at once. If `into` is given, the
    signal's payload is stored in that field of the workflow's data. By default, `status` is the only next status of the
    stage. `data`, if given, becomes the workflow's data.

    `timeout` is a timedelta. After it, the workflow moves to `on_timeout` instead.

    Raises InvalidInput if a value can't be stored.
    """

    name: str
    to: str
    timeout: timedelta | None = None
    on_timeout: str | None = None
    into: str | None = None
    data: Data | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        texts.check_text(self.name, "name", MAX_NAME)
        if self.into is not None:
            texts.check_text(self.into, "into", MAX_NAME)
        check_timeout("timeout", self.timeout, "on_timeout", self.on_timeout)

    @property
    def leads_to(self) -> list[str]:
        """The statuses to which the signal and the timeout lead."""
        return [self.to, *([self.on_timeout] if self.on_timeout else [])]

    def as_wait(self) -> WaitJson:
        """Returns the wait as JSON for the database."""
        return {
            "signal": self.name,
            "to_status": self.to,
            "field": self.into,
            "within": seconds(self.timeout),
            "on_deadline": self.on_timeout,
        }
