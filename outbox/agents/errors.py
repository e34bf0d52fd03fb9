"""Defines what ends the job of an agent, so that it is not tried again, and what ends a call that waits."""

from __future__ import annotations

from typing import Any

from ..definition.effect import NotDone
from ..definition.outcome import Reject


class ResultRefused(Reject):
    """A result can't be kept: JSON can't hold it, or it is too large. The job is dead, because the call was made.

    `what` names the tool or the request. Return something that JSON can hold.
    """

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(f"the result of {what} can't be kept: {problem}")
        self.what = what
        self.problem = problem


class ConversationTooLong(Reject):
    """A conversation is longer than what a workflow can keep. It is raised before the next request is made.

    `size` and `limit` are in bytes of JSON.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the conversation has {size:,} bytes of JSON; the limit is {limit:,}")
        self.size = size
        self.limit = limit


class BudgetExceeded(Reject):
    """An agent has spent its budget. It is raised before the next request is made.

    `limit` is the field of the `Budget`, `allowed` its value, and `spent` what has been spent.
    """

    def __init__(self, limit: str, allowed: int, spent: int) -> None:
        where = "in this workflow" if limit.startswith("workflow_") else "in this attempt"
        unit = limit.removeprefix("workflow_")
        super().__init__(f"the agent has spent its budget: {spent:,} {unit} {where}, of {allowed:,}")
        self.limit = limit
        self.allowed = allowed
        self.spent = spent

    def __reduce__(self) -> Any:
        return type(self), (self.limit, self.allowed, self.spent)


class StillWaits(NotDone):
    """A tool call has not ended, because an agent within it waits for people. It isn't kept, and not tried again."""

    def __init__(self, result: Any) -> None:
        super().__init__("an agent in a tool waits for people")
        self.result = result
