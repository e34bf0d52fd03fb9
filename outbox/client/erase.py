"""Erases what an entity's workflow has of texts, in the caller's own transaction, on a sync or an async connection.

All of it happens in the database function `erase`, which only the owner of the schema may call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..documents import EntityId
from .execute import Steps, execute

SQL = statements.load("erase")


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased of a workflow, and what can't be reached.

    `status` and `version` are those that the workflow has now. `unsent` messages were deleted before any relay has read
    them, `parked` ones and `parked_deliveries` before they were tried again. `published` is out of reach: how many
    messages of each topic a relay has read, of those that the log still had. `reactions` went whole, and
    `reactions_not_run` of them never run. `blobs_of_others` are large contents that other workflows use as well, which
    stay. `relatives` are parents and children, by pipeline and entity, which may have copies of the data.
    """

    pipeline: str
    entity_id: str
    status: str
    version: int
    unsent: int
    parked: int
    parked_deliveries: int
    published: dict[str, int]
    reactions: int
    reactions_not_run: int
    blobs_of_others: int
    relatives: list[tuple[str, str]]


def erase(pipeline: str, conn: Any, entity_id: EntityId, by: str | None, reason: str | None) -> Any:
    """Erases the data and the texts of a workflow. See Pipeline.erase."""
    entity_id = documents.entity(entity_id)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return execute(conn, _erase({"pipeline": pipeline, "entity": entity_id, "by": by, "reason": reason}))


def _erase(params: dict[str, Any]) -> Steps[Erased]:
    ((text,),) = yield SQL["erase"], params
    found = json.loads(text)
    found["relatives"] = [(each["pipeline"], each["entity_id"]) for each in found["relatives"]]
    return Erased(**found)
