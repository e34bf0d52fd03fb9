"""Lets people vote in others' place, in the caller's own transaction, on a sync or an async connection."""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from datetime import UTC, datetime
from typing import Any, overload

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..errors import InvalidInput
from .approvals import checked_groups
from .execute import Steps, execute

SQL = statements.load("delegations")


@overload
def delegate(
    conn: AsyncConn, to: str, *, until: datetime, by: str | None = None,
    groups: Collection[str] | None = None, reason: str | None = None,
) -> Coroutine[Any, Any, None]: ...  # fmt: skip
@overload
def delegate(
    conn: SyncConn, to: str, *, until: datetime, by: str | None = None,
    groups: Collection[str] | None = None, reason: str | None = None,
) -> None: ...  # fmt: skip
def delegate(
    conn: Any, to: str, *, until: datetime, by: str | None = None, groups: Collection[str] | None = None,
    reason: str | None = None,
) -> Any:  # fmt: skip
    """Lets the person `to` vote in place of the person `by` until an end, which has a zone.

    Await it on an async connection. Their vote counts for `by`, once: if `by` votes, too, that vote takes its place.
    A second call replaces the end. Who has asked a question doesn't vote on it in anybody's place.

    `by` is the login, unless the session's role may speak for others; then `groups` are the groups that the application
    knows `by` to be in. Raises InvalidInput if a value can't be stored.
    """
    texts.check_text(to, "to", MAX_NAME)
    check_end(until)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    if to == by:
        raise InvalidInput("to", "must be another person")
    params = {"to": to, "until": until, "by": by, "groups": checked_groups(groups), "reason": reason}
    return execute(conn, _delegate(params))


@overload
def end_delegation(conn: AsyncConn, to: str, *, by: str | None = None) -> Coroutine[Any, Any, bool]: ...
@overload
def end_delegation(conn: SyncConn, to: str, *, by: str | None = None) -> bool: ...
def end_delegation(conn: Any, to: str, *, by: str | None = None) -> Any:
    """Ends the delegation of `by` to the person `to` before its time. Returns whether there was one.

    Await it on an async connection. Votes that were cast stay.
    """
    texts.check_text(to, "to", MAX_NAME)
    texts.check_optional(by, "by", MAX_NAME)
    return execute(conn, _end({"to": to, "by": by}))


def check_end(until: object) -> None:
    """Raises InvalidInput unless `until` is a time with a zone that has not passed."""
    if not isinstance(until, datetime) or until.utcoffset() is None:
        raise InvalidInput("until", f"must be a datetime with a zone, not {texts.shown(until)}")
    if until <= datetime.now(UTC):
        raise InvalidInput("until", f"must be later than now, not {until.isoformat()}")


def _delegate(delegation: dict[str, Any]) -> Steps[None]:
    yield SQL["delegate"], delegation


def _end(delegation: dict[str, Any]) -> Steps[bool]:
    ((ended,),) = yield SQL["delegation_end"], delegation
    return bool(ended)
