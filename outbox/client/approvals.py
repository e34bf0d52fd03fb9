"""Decides what people are asked, in the caller's own transaction, on a sync or an async connection.

The decision, the history, the status and the next job are one commit. Exactly one decision wins: the workflow's row is
locked before anything is looked at (see `decide` in sql/functions/approvals.sql, which psql calls as well).
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, overload

import psycopg

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..errors import InvalidInput
from .execute import Steps, execute
from .named import Named

SQL = statements.load("approvals")


@overload
def decide(
    conn: psycopg.AsyncConnection[Any], pipeline: Named | str, entity_id: str, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def decide(
    conn: psycopg.Connection[Any], pipeline: Named | str, entity_id: str, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> str: ...  # fmt: skip
def decide(
    conn: Any,
    pipeline: Named | str,
    entity_id: str,
    decision: str,
    *,
    by: str | None = None,
    reason: str | None = None,
    edit: Any = None,
    shown: str | None = None,
) -> Any:
    """Answer the open question of a workflow in the caller's transaction; returns the status that it has then.

    `by` (default: the database's role) and `reason` are kept in the history. `edit` becomes the workflow's data and is
    validated by the pipeline, which must be given as such. `shown` is the hash of the data that was looked at, as the
    list of approvals tells it (default: of what was asked about).

    InvalidInput before any SQL; else psycopg's error with SQLSTATE OB011 (no such workflow), OB012 (nothing is asked),
    OB013 (too late: by whom and when), OB014 (no such option), OB015 (the data has changed since it was shown). The
    same decision by the same person once more is no error, and changes nothing.
    """
    texts.check_text(entity_id, "entity_id", documents.MAX_ENTITY_ID)
    for what, text, longest in (
        ("decision", decision, MAX_NAME),
        ("by", by, MAX_NAME),
        ("reason", reason, MAX_QUESTION),
    ):
        if text is not None:
            texts.check_text(text, what, longest)
    name, edited = pipeline if isinstance(pipeline, str) else pipeline.name, None
    if edit is not None:
        if isinstance(pipeline, str):
            raise InvalidInput("edit", "is validated by the pipeline: give the Pipeline, not its name")
        edited = pipeline.dump_readable(edit)
    params = {"pipeline": name, "entity": entity_id, "decision": decision, "by": by, "reason": reason}
    return execute(conn, _decide({**params, "edit": edited, "shown": shown}))


@overload
def approve(
    conn: psycopg.AsyncConnection[Any], pipeline: Named | str, entity_id: str, **how: Any
) -> Coroutine[Any, Any, str]: ...
@overload
def approve(conn: psycopg.Connection[Any], pipeline: Named | str, entity_id: str, **how: Any) -> str: ...
def approve(conn: Any, pipeline: Named | str, entity_id: str, **how: Any) -> Any:
    """Decide "approve"; see `decide`."""
    return decide(conn, pipeline, entity_id, "approve", **how)


@overload
def reject(
    conn: psycopg.AsyncConnection[Any], pipeline: Named | str, entity_id: str, **how: Any
) -> Coroutine[Any, Any, str]: ...
@overload
def reject(conn: psycopg.Connection[Any], pipeline: Named | str, entity_id: str, **how: Any) -> str: ...
def reject(conn: Any, pipeline: Named | str, entity_id: str, **how: Any) -> Any:
    """Decide "reject"; see `decide`."""
    return decide(conn, pipeline, entity_id, "reject", **how)


def _decide(decision: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["decide"], decision
    return str(status)
