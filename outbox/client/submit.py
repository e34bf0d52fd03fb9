"""Step 1: starts workflows in the caller's own transaction, on a sync or an async connection.

Each call is a generator that yields statements and receives their rows; see execute.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.statements import text_array
from ..documents import EntityId
from ..errors import InvalidInput, NotDeployed
from .acting import acting
from .execute import Steps, drive, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("submit")

BATCH = 2_000
"""Workflows per statement of submit_many. So many make a round trip negligible; a batch is held in memory."""

BATCH_SIZE = 8 * 2**20
"""Characters of data after which no further workflow is added to a statement. Postgres limits a statement to 1 GB."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submitted workflow. `created` is False if the entity had one already; `status` is its current status."""

    id: UUID
    entity_id: str
    status: str
    created: bool


def submit(
    pipeline: PipelineLike, conn: Any, entity_id: EntityId, data: Any, by: str | None, reason: str | None
) -> Any:
    """Starts a workflow. See Pipeline.submit."""
    steps = acting(_submit_one(pipeline.name, *_checked(pipeline, entity_id, data)), by, reason)
    return execute(conn, steps, whole=(by or reason) is not None)


def submit_by_name(pipeline: str, conn: Any, entity_id: EntityId, data: Any, by: str | None, reason: str | None) -> Any:
    """Starts a workflow of a pipeline whose code isn't here: the database checks the data, as that of any program.

    The database raises UnknownPipeline and DataRefused.
    """
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    told = {
        "pipeline": name_of(pipeline), "entity": documents.entity(entity_id),
        "metadata": documents.dump_any(data, "data"), "by": by, "reason": reason,
    }  # fmt: skip
    return execute(conn, _submit_by_name(told))


def submit_many(
    pipeline: PipelineLike, conn: Any, items: Iterable[tuple[EntityId, Any]], by: str | None, reason: str | None
) -> Any:
    """Starts many workflows. See Pipeline.submit_many."""
    if not isinstance(items, Iterable):
        raise InvalidInput("items", f"must be (entity_id, data) pairs, not {texts.shown(items)}")
    steps = _submit_all(pipeline.name, (_checked(pipeline, *_pair(item)) for item in items))
    return execute(conn, acting(steps, by, reason), whole=True)


def submit_text(
    pipeline: str, conn: psycopg.Connection[Any], items: Iterable[tuple[str, str]], *, of_code: bool = True
) -> int:
    """Starts many workflows from pairs (entity_id, checked JSON text), and returns how many are new.

    `of_code`: the pipeline's own code has made the text, so that it states its version. Else it is the text of another
    writer, and has the version that the pipeline says of these.
    """
    return drive(conn, _submit_all(pipeline, items, of_code))


def _pair(item: Any) -> tuple[Any, Any]:
    try:
        entity_id, data = item
    except (TypeError, ValueError):
        raise InvalidInput("items", f"each item is (entity_id, data), not {texts.shown(item)}") from None
    return entity_id, data


def _checked(pipeline: PipelineLike, entity_id: Any, data: Any) -> tuple[str, str]:
    return documents.entity(entity_id), pipeline.dump_readable(data)


def _submit_one(pipeline: str, entity_id: str, metadata: str) -> Steps[Submitted]:
    told = {"pipeline": pipeline, "entity": entity_id, "metadata": metadata}
    ((id_, status, created),) = yield SQL["workflow_submit"], told
    if id_ is None:
        raise _not_deployed(pipeline)
    return Submitted(UUID(id_), entity_id, status, created)


def _submit_by_name(told: dict[str, Any]) -> Steps[Submitted]:
    ((id_, status, created),) = yield SQL["workflow_submit_by_name"], told
    return Submitted(UUID(id_), told["entity"], status, created)


def _submit_all(pipeline: str, items: Iterable[tuple[str, str]], of_code: bool = True) -> Steps[int]:
    rows = yield SQL["pipeline_is_deployed"], {"pipeline": pipeline}
    if not rows[0][0]:
        raise _not_deployed(pipeline)
    started = 0
    for entities, metadata in _batches(items):
        rows = yield (
            SQL["workflows_submit_count"],
            {
                "pipeline": pipeline,
                "entities": text_array(entities),
                "metadata": text_array(metadata),
                "of_code": of_code,
            },
        )
        started += rows[0][0]
    return started


def _batches(items: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    entities, metadata, size = list[str](), list[str](), 0
    for entity, text in items:
        if len(entities) == BATCH or (entities and size + len(text) > BATCH_SIZE):
            yield entities, metadata
            entities, metadata, size = [], [], 0
        entities.append(entity)
        metadata.append(text)
        size += len(text)
    if entities:
        yield entities, metadata


def _not_deployed(pipeline: str) -> NotDeployed:
    return NotDeployed(f'pipeline "{pipeline}" is not deployed here. Run: outbox deploy --app module:object')
