"""Answers the questions of workflows, in the caller's own transaction, on a sync or an async connection.

The decision, the history, the status and the next job are one commit. Exactly one decision wins, because the workflow's
row is locked before anything is read. All of this happens in the database function `decide`, which SQL clients can
call, too.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from typing import Any, overload
from uuid import UUID

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from ..errors import InvalidInput
from ..texts import shown as as_shown
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("approvals")


@overload
def decide(
    conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def decide(
    conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> str: ...  # fmt: skip
def decide(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, decision: str, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Any:  # fmt: skip
    """Answers a question of a workflow in the caller's transaction, and returns the status that the workflow then has.

    Await it on an async connection. `decision` is one of the question's options. `question` is the id of the question,
    which is needed if several are open, and is what makes it safe to repeat the call. `by` (default: the session's
    actor) and `reason` are kept.

    `edit` becomes the workflow's data; the pipeline validates it, so pass the Pipeline, not its name. `about` replaces
    what a question is about that has data of its own. `shown` is needed if the data has changed since the question was
    asked: the hash of the data that the person looked at, as `outbox approvals` lists it.

    If the question has approvers, the answer is a vote. The status is as before until the last vote that is needed. The
    person is the login, unless the session's role may speak for others: then it is `by`, and `groups` are the groups
    that the application knows the person to be in (default: those of the database role of that name).

    Repeating an answer as the same person is not an error, and changes nothing.

    Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, NothingAsked,
    SeveralAsked, TooLate, NoSuchOption, DataChanged, EditRefused and VoteRefused; like any error in a transaction, they
    end it.
    """
    entity_id = documents.entity(entity_id)
    answer = checked(
        pipeline, decision, by=by, reason=reason, edit=edit, about=about, shown=shown, question=question, groups=groups
    )
    return execute(conn, _decide({"pipeline": name_of(pipeline), "entity": entity_id, **answer}))


@overload
def approve(
    conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def approve(
    conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> str: ...  # fmt: skip
def approve(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Any:  # fmt: skip
    """Answers a question of a workflow with "approve". Parameters, result and errors are those of `decide`."""
    return decide(
        conn, pipeline, entity_id, "approve", by=by, reason=reason, edit=edit, about=about, shown=shown,
        question=question, groups=groups,
    )  # fmt: skip


@overload
def reject(
    conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Coroutine[Any, Any, str]: ...  # fmt: skip
@overload
def reject(
    conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> str: ...  # fmt: skip
def reject(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, *,
    by: str | None = None, reason: str | None = None, edit: Any = None, about: Any = None, shown: str | None = None,
    question: UUID | str | None = None, groups: Collection[str] | None = None,
) -> Any:  # fmt: skip
    """Answers a question of a workflow with "reject". Parameters, result and errors are those of `decide`."""
    return decide(
        conn, pipeline, entity_id, "reject", by=by, reason=reason, edit=edit, about=about, shown=shown,
        question=question, groups=groups,
    )  # fmt: skip


def checked(
    pipeline: PipelineLike | str, decision: str, *, by: str | None = None, reason: str | None = None, edit: Any = None,
    about: Any = None, shown: str | None = None, question: UUID | str | None = None,
    groups: Collection[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns an answer as parameters of a statement. Raises InvalidInput if a value can't be stored."""
    texts.check_text(decision, "decision", MAX_NAME)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    texts.check_optional(shown, "shown", MAX_NAME)
    if edit is not None:
        if isinstance(pipeline, str):
            raise InvalidInput("edit", "is validated by the pipeline: give the Pipeline, not its name")
        edit = pipeline.dump_readable(edit)
    return {
        "decision": decision,
        "by": by,
        "reason": reason,
        "edit": edit,
        "about": None if about is None else documents.dump_any(about, "about"),
        "shown": shown,
        "question": question_id(question),
        "groups": checked_groups(groups),
    }


def question_id(question: UUID | str | None, field: str = "question") -> UUID | None:
    """Returns the id of a question. Raises InvalidInput, which names `field`, if it isn't one."""
    if question is None or isinstance(question, UUID):
        return question
    try:
        return UUID(question)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInput(field, f"is an id, as outbox approvals lists it, not {as_shown(question)}") from None


def checked_groups(groups: Collection[str] | None) -> list[str] | None:
    """Returns the groups of a person. Raises InvalidInput if they can't be stored."""
    if groups is None:
        return None
    if isinstance(groups, str) or not isinstance(groups, Collection):
        raise InvalidInput("groups", f"must be names, not {as_shown(groups)}")
    return sorted({texts.check_text(group, "groups", MAX_NAME) for group in groups})


def _decide(decision: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["decide"], decision
    return str(status)
