"""Does the steps of a call in somebody's name and for a reason, which the history keeps.

What else the caller's transaction changes is told as before. A function of the database that takes the name itself,
such as `decide`, doesn't need this.
"""

from __future__ import annotations

from typing import TypeVar

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from .execute import Steps

SQL = statements.load("acting")
T = TypeVar("T")


def acting(steps: Steps[T], by: str | None, reason: str | None = None) -> Steps[T]:
    """Returns the steps, between two that name the actor and put back who it was; as they are if nobody is named."""
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return steps if by is None and reason is None else _between(steps, by, reason)


def _between(steps: Steps[T], by: str | None, reason: str | None) -> Steps[T]:
    ((actor, why, *_),) = yield SQL["act_as"], {"by": by, "reason": reason}
    done = yield from steps
    yield SQL["act_as"], {"by": actor, "reason": why}
    return done
