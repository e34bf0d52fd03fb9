"""Defines the steps of a drain, which a runner takes.

A runner decides what a transaction is. In inside.py it is a savepoint of the caller's, and nothing is committed. In
crashing.py it is a transaction, and a step may be the last one before a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from ..database.steps import Statement
from ..database.user_transaction import Steps as TransactionSteps
from ..definition.run import Run
from ..definition.step_transaction import Hook

T = TypeVar("T")


class Guard(NamedTuple):
    """Opens a savepoint, where the steps are in one transaction."""


class Release(NamedTuple):
    """Closes the last savepoint. What was done since stays, unless an error has ended it."""


class Undo(NamedTuple):
    """Rolls back to the last savepoint, and closes it."""


class PutBackSettings(NamedTuple):
    """Sets in the session what the engine's statements have changed to what it was before."""


class Rest(NamedTuple):
    """Waits for some seconds."""

    seconds: float


class Handle(NamedTuple):
    """Calls a handler that has no transaction. Its answer is the outcome."""

    run: Run[Any]


class InTransaction(NamedTuple):
    """Takes the steps of a user's function in a transaction. `what` names it, and `timeout` is in seconds."""

    what: str
    is_async: bool
    timeout: float
    steps: Callable[[Any], TransactionSteps[Any]]


class AfterCommit(NamedTuple):
    """Calls what a user's function wants called after its COMMIT. `what` names it, and `timeout` is in seconds."""

    what: str
    is_async: bool
    timeout: float
    hooks: Sequence[Hook]


Step = Guard | Release | Undo | PutBackSettings | Rest | Handle | InTransaction | AfterCommit | Statement
Steps = Generator[Step, Any, T]
