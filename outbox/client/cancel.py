"""Cancels workflows, in the caller's own transaction, on a sync or an async connection.

All of it happens in the database function `cancel`, which SQL clients can call, too.
"""

from __future__ import annotations

from typing import Any

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..documents import EntityId
from .execute import Steps, execute

SQL = statements.load("cancel")


def cancel(pipeline: str, conn: Any, entity_id: EntityId, by: str | None, reason: str | None) -> Any:
    """Cancels a workflow. See Pipeline.cancel."""
    entity_id = documents.entity(entity_id)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return execute(conn, _cancel({"pipeline": pipeline, "entity": entity_id, "by": by, "reason": reason}))


def _cancel(params: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["cancel"], params
    return str(status)
