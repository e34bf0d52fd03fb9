"""Changes the status of a workflow by hand, in the caller's own transaction, on a sync or an async connection.

All of it happens in the database function `move`, which SQL clients can call, too. A plain UPDATE of `current_status`
does the same.
"""

from __future__ import annotations

from typing import Any

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..documents import EntityId
from .execute import Steps, execute

SQL = statements.load("move")


def move(pipeline: str, conn: Any, entity_id: EntityId, status: str, by: str | None, reason: str | None) -> Any:
    """Moves a workflow to a status. See Pipeline.move."""
    entity_id = documents.entity(entity_id)
    if status != "":  # the database refuses it with the name of the workflow
        texts.check_text(status, "status", MAX_NAME)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    params = {"pipeline": pipeline, "entity": entity_id, "status": status, "by": by, "reason": reason}
    return execute(conn, _move(params))


def _move(params: dict[str, Any]) -> Steps[str]:
    ((status,),) = yield SQL["move"], params
    return str(status)
