"""Counts what an agent spends, and ends it when its budget is used up."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..checks import check_whole
from .errors import BudgetExceeded

_MOST = 10**12
"""The largest budget, of tokens: more than any model has been given by one workflow."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many model requests and tokens an agent may spend, sub-agents included. None: any number.

    `requests` and `tokens` are for one attempt, whose kept requests cost nothing. `workflow_requests` and
    `workflow_tokens` are for all attempts whose results were kept, and in `agent_stage` for all turns of the workflow.
    Before a request that would exceed one of them, BudgetExceeded is raised.

    Raises DefinitionError if a value is not a whole number.
    """

    requests: int | None = None
    tokens: int | None = None
    workflow_requests: int | None = None
    workflow_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None:
                check_whole(value, f"Budget {field.name}=", _MOST)


class Spending:
    """What was spent in one attempt, and in the workflow so far."""

    def __init__(self, budget: Budget | None, requests: int, tokens: int) -> None:
        self._budget = budget or Budget()
        self.requests = self.tokens = 0
        self.workflow_requests, self.workflow_tokens = requests, tokens

    def require(self) -> None:
        """Raises BudgetExceeded if there is nothing left for another request."""
        for field in fields(Budget):
            allowed: int | None = getattr(self._budget, field.name)
            spent: int = getattr(self, field.name)
            if allowed is not None and spent >= allowed:
                raise BudgetExceeded(field.name, allowed, spent)

    def add(self, tokens: int, *, made: bool) -> None:
        """Counts a request: one that was `made` in this attempt, or one that was kept."""
        self.workflow_requests += 1
        self.workflow_tokens += tokens
        if made:
            self.requests += 1
            self.tokens += tokens
