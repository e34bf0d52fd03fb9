"""Defines the wait for the end of the workflows that a workflow has spawned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ... import texts
from ...checks import MAX_NAME
from ...errors import InvalidInput
from ...texts import shown
from .times import check_timeout, seconds
from .wait import Wait, WaitJson

Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class WaitForChildren(Wait[Data]):
    """Returned by a handler: waits in `status` until all children have ended.

    Children are the workflows that `run.spawn` has started, in this stage or before. The commit that ends the last
    child moves the workflow to `to`, or to `on_failure` if a child has ended in one of the `failed` statuses. A child
    whose job is dead has not ended; it waits for a person. By default, `status` is the only next status of the stage.
    `data`, if given, becomes the workflow's data.

    `timeout` is a timedelta. After it, the workflow moves to `on_timeout` instead.

    Raises InvalidInput if a value can't be stored.
    """

    to: str
    on_failure: str | None = None
    failed: Iterable[str] = ()
    timeout: timedelta | None = None
    on_timeout: str | None = None
    data: Data | None = None
    status: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.failed, str) or not isinstance(self.failed, Iterable):
            raise InvalidInput("failed", f"must be statuses, not {shown(self.failed)}")
        object.__setattr__(self, "failed", sorted(texts.check_text(each, "failed", MAX_NAME) for each in self.failed))
        if (self.on_failure is None) != (not self.failed):
            raise InvalidInput("failed", "failed and on_failure go together: which statuses of a child mean failure")
        check_timeout("timeout", self.timeout, "on_timeout", self.on_timeout)

    @property
    def leads_to(self) -> list[str]:
        """The statuses to which the end of the children, a failure among them, and the timeout lead."""
        return [self.to, *(status for status in (self.on_failure, self.on_timeout) if status)]

    def as_wait(self) -> WaitJson:
        """Returns the wait as JSON for the database."""
        return {
            "join": True,
            "to_status": self.to,
            "failed": self.failed,
            "on_failure": self.on_failure,
            "within": seconds(self.timeout),
            "on_deadline": self.on_timeout,
        }
