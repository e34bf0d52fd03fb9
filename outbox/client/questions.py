"""Lists the questions that wait for a person, in the caller's own transaction, on a sync or an async connection."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, overload
from uuid import UUID

from .. import documents, texts
from ..checks import MAX_NAME
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from .approvals import question_id
from .execute import Steps, execute
from .lists import check_limit
from .pipelines import PipelineLike, name_of

SQL = statements.load("questions")


@dataclass(frozen=True, slots=True)
class Approval:
    """An open question. `decide` answers it with one of its `options`, which are mapped to the statuses they lead to.

    `data` is what it is about: the workflow's data, or its own. `shown` is the hash of this data. If it has `changed`
    since the question was asked, pass `shown` with the decision. `assignee` is who was asked, `asked_by` is who must
    not answer it alone. `approvers` says how many votes of which groups it needs; None: one answer decides. Each of
    `votes` has `person`, `option`, `cast_by`, `groups`, and whether it `counts` for the data as it is now.
    """

    id: UUID
    pipeline: str
    entity_id: str
    status: str
    name: str | None
    question: str
    options: dict[str, str]
    edits_allowed: bool
    assignee: str | None
    asked_by: str | None
    asked_at: datetime
    deadline: datetime | None
    reminders: int
    approvers: dict[str, int] | None
    votes: list[dict[str, Any]]
    data: Any = field(repr=False)
    shown: str
    changed: bool


_NAMES = [each.name for each in fields(Approval)]


@overload
def approvals(
    conn: AsyncConn, *, pipeline: PipelineLike | str | None = None, assignee: str | None = None, limit: int = 100,
    after: UUID | str | None = None,
) -> Coroutine[Any, Any, list[Approval]]: ...  # fmt: skip
@overload
def approvals(
    conn: SyncConn, *, pipeline: PipelineLike | str | None = None, assignee: str | None = None, limit: int = 100,
    after: UUID | str | None = None,
) -> list[Approval]: ...  # fmt: skip
def approvals(
    conn: Any, *, pipeline: PipelineLike | str | None = None, assignee: str | None = None, limit: int = 100,
    after: UUID | str | None = None,
) -> Any:  # fmt: skip
    """Lists up to `limit` open questions, the oldest first: all, those of a pipeline, or those for an assignee.

    Await it on an async connection. The id of the last one, as `after`, leads to the next ones.
    """
    texts.check_optional(assignee, "assignee", MAX_NAME)
    asked = {
        "pipeline": None if pipeline is None else name_of(pipeline), "assignee": assignee, "limit": check_limit(limit),
        "after": question_id(after, "after"),
    }  # fmt: skip
    return execute(conn, open_questions(asked))


def open_questions(asked: dict[str, Any], *, by_deadline: bool = False) -> Steps[list[Approval]]:
    """Returns open questions, the oldest first or the one first that ends first."""
    found = yield SQL["approvals_open"], {**asked, "by_deadline": by_deadline}
    return [_approval(json.loads(text)) for (text,) in found]


def _approval(told: list[Any]) -> Approval:
    row = dict(zip(_NAMES, told, strict=True))
    row["id"] = UUID(row["id"])
    row["asked_at"] = datetime.fromisoformat(row["asked_at"])
    if row["deadline"] is not None:
        row["deadline"] = datetime.fromisoformat(row["deadline"])
    row["data"] = documents.read(row["data"])
    return Approval(**row)
