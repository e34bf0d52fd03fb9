"""Answers the questions of workflows, in the caller's own transaction, on a sync or an async connection.

The decision, the history, the status and the next job are one commit. Exactly one decision wins, because the workflow's
row is locked before anything is read. All of this happens in the database function `decide`, which SQL clients can
call, too.
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
from .pipelines import PipelineLike, name_of

SQL = statements.load("approvals")


@overload
def decide(
    conn: psycopg.AsyncConnection[Any], pipeline: PipelineLike | str, entity_id: str, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def decide(
    conn: psycopg.Connection[Any], pipeline: PipelineLike | str, entity_id: str, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> str: ...  # fmt: skip
def decide(
    conn: Any, pipeline: PipelineLike | str, entity_id: str, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Any:  # fmt: skip
    """Answers the open question of a workflow in the caller's transaction, and returns the workflow's new status.

    Await it on an async connection. `decision` is one of the question's options. `by` (default: the database role) and
    `reason` are kept in the history. `edit` becomes the workflow's data; the pipeline validates it, so pass the
    Pipeline, not its name. `shown` is needed if the data has changed since the question was asked: the hash of the data
    that the person looked at, as `outbox approvals` lists it.

    Repeating a decision as the same person is not an error, and changes nothing.

    Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, NothingAsked,
    TooLate, NoSuchOption and DataChanged; like any error in a transaction, they end it.
    """
    texts.check_text(entity_id, "entity_id", documents.MAX_ENTITY_ID)
    for what, text, longest in (
        ("decision", decision, MAX_NAME),
        ("by", by, MAX_NAME),
        ("reason", reason, MAX_QUESTION),
    ):
        if text is not None:
            texts.check_text(text, what, longest)
    edited = None
    if edit is not None:
        if isinstance(pipeline, str):
            raise InvalidInput("edit", "is validated by the pipeline: give the Pipeline, not its name")
        edited = pipeline.dump_readable(edit)
    params = {"pipeline": name_of(pipeline), "entity": entity_id, "decision": decision, "by": by, "reason": reason}
    return execute(conn, _decide({**params, "edit": edited, "shown": shown}))


@overload
def approve(
    conn: psycopg.AsyncConnection[Any], pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def approve(
    conn: psycopg.Connection[Any], pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> str: ...  # fmt: skip
def approve(
    conn: Any, pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Any:  # fmt: skip
    """Answers the open question of a workflow with "approve". Parameters, result and errors are those of `decide`."""
    return decide(conn, pipeline, entity_id, "approve", by=by, reason=reason, edit=edit, shown=shown)


@overload
def reject(
    conn: psycopg.AsyncConnection[Any], pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def reject(
    conn: psycopg.Connection[Any], pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> str: ...  # fmt: skip
def reject(
    conn: Any, pipeline: PipelineLike | str, entity_id: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, shown: str | None = None,
) -> Any:  # fmt: skip
    """Answers the open question of a workflow with "reject". Parameters, result and errors are those of `decide`."""
    return decide(conn, pipeline, entity_id, "reject", by=by, reason=reason, edit=edit, shown=shown)


def _decide(decision: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["decide"], decision
    return str(status)
