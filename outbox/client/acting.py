"""Does the steps of a call in somebody's name and for a reason, which the history keeps.

What else the caller's transaction changes is told as before. A function of the database that takes the name itself,
such as `decide`, doesn't need this.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.drivers.connection import SyncConn
from ..database.refusals import sqlstate_of
from .execute import Steps, execute

SQL = statements.load("acting")
T = TypeVar("T")


def acting(steps: Steps[T], by: str | None, reason: str | None = None) -> Steps[T]:
    """Wraps the steps in two that set actor and reason, and put back what they were. With neither, changes nothing."""
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return steps if by is None and reason is None else _between(steps, by, reason)


def _between(steps: Steps[T], by: str | None, reason: str | None) -> Steps[T]:
    before = yield from _act_as(by, reason)
    try:
        done = yield from steps
    except Exception as error:
        if sqlstate_of(error) is None:  # else the transaction has failed, and its rollback puts them back
            with suppress(Exception):
                yield from _act_as(*before)
        raise
    yield from _act_as(*before)
    return done


def act_as(conn: SyncConn, name: str) -> None:
    """Names the actor of this transaction: whose an answer without `by` is, if it may be another than the login."""
    execute(conn, _act_as(name, None))


def _act_as(by: str | None, reason: str | None) -> Steps[tuple[str, str]]:
    """Sets actor and reason (None: as before) for the rest of the transaction, and returns what they were."""
    ((actor, why, *_),) = yield SQL["act_as"], {"by": by, "reason": reason}
    return actor, why
