"""Says why a workflow does not move: in one sentence, with one remedy. The SQL function `outbox.why` knows."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, overload

from .. import documents, texts
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("why")


@dataclass(frozen=True, slots=True)
class Why:
    """Why a workflow does not move. `cause` is the kind of reason, such as "person", "paused" or "no worker".

    `sentence` is for people, and `remedy` is what to do, None if nothing is to be done. `details` has the facts. See
    docs/lists.md for all causes.
    """

    cause: str
    sentence: str
    remedy: str | None
    details: dict[str, Any]

    def __str__(self) -> str:
        return self.sentence if self.remedy is None else f"{self.sentence} \N{RIGHTWARDS ARROW} {self.remedy}"


@overload
def why(conn: AsyncConn, pipeline: PipelineLike | str, entity_id: EntityId) -> Coroutine[Any, Any, Why]: ...
@overload
def why(conn: SyncConn, pipeline: PipelineLike | str, entity_id: EntityId) -> Why: ...
def why(conn: Any, pipeline: PipelineLike | str, entity_id: EntityId) -> Any:
    """Says why a workflow does not move. Await it on an async connection.

    Raises InvalidInput before any SQL for an id that no workflow can have. The database raises NoWorkflow.
    """
    entity_id = documents.entity(entity_id)
    return execute(conn, asked(name_of(pipeline), entity_id))


def asked(pipeline: str, entity_id: str) -> Steps[Why]:
    """Does what `why` does, as steps."""
    ((cause, sentence, remedy, details),) = yield SQL["why"], {"pipeline": pipeline, "entity": entity_id}
    return Why(cause, texts.printable(sentence), remedy and texts.printable(remedy), json.loads(details))
