"""Lists dead jobs and has them run again, in the caller's own transaction, on a sync or an async connection."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, overload

from .. import documents, texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..documents import EntityId
from .execute import Steps, execute
from .lists import check_limit
from .pipelines import PipelineLike, name_of

SQL = statements.load("dead")

BATCH = 1_000
"""How many dead jobs one statement of retry_all takes. It locks as many workflows, for well below a second."""


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that has used up its attempts or was rejected. It waits for a person: `retry`, or a change of the status.

    `error` is why its last attempt failed, and `kind` is the same without ids and numbers.
    """

    pipeline: str
    entity_id: str
    stage: str
    status: str
    attempts: int
    error: str
    kind: str
    died_at: datetime


@overload
def dead(
    conn: AsyncConn, *, pipeline: PipelineLike | str | None = None, error: str | None = None, limit: int = 100
) -> Coroutine[Any, Any, list[DeadJob]]: ...
@overload
def dead(
    conn: SyncConn, *, pipeline: PipelineLike | str | None = None, error: str | None = None, limit: int = 100
) -> list[DeadJob]: ...
def dead(
    conn: Any, *, pipeline: PipelineLike | str | None = None, error: str | None = None, limit: int = 100
) -> Any:  # fmt: skip
    """Lists the latest dead jobs, up to `limit`: all, those of a pipeline, or those of an error or its kind.

    Await it on an async connection. `Pipeline.find(dead=True)` returns them page by page, with their data.
    """
    texts.check_optional(error, "error", texts.MAX_ERROR)
    asked = {"pipeline": None if pipeline is None else name_of(pipeline), "error": error, "limit": check_limit(limit)}
    return execute(conn, jobs(asked))


@overload
def retry(
    conn: AsyncConn,
    pipeline: PipelineLike | str,
    entity_id: EntityId,
    *,
    by: str | None = None,
    reason: str | None = None,
) -> Coroutine[Any, Any, bool]: ...  # fmt: skip
@overload
def retry(
    conn: SyncConn,
    pipeline: PipelineLike | str,
    entity_id: EntityId,
    *,
    by: str | None = None,
    reason: str | None = None,
) -> bool: ...  # fmt: skip
def retry(
    conn: Any, pipeline: PipelineLike | str, entity_id: EntityId, *, by: str | None = None, reason: str | None = None
) -> Any:
    """Has the dead job of a workflow run again, with all its attempts. Await it on an async connection.

    Returns False if the workflow has a live job, or if no stage takes its status. `by` (default: the session's actor)
    and `reason` are kept in `outbox.actions`.

    Raises InvalidInput before any SQL if a value can't be stored. The database raises NoWorkflow, which ends the
    transaction.
    """
    entity_id = documents.entity(entity_id)
    return execute(conn, _retry({"pipeline": name_of(pipeline), "entity": entity_id, **_told(by, reason)}))


@overload
def retry_all(
    conn: AsyncConn, *, pipeline: PipelineLike | str | None = None, error: str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Coroutine[Any, Any, int]: ...  # fmt: skip
@overload
def retry_all(
    conn: SyncConn, *, pipeline: PipelineLike | str | None = None, error: str | None = None, by: str | None = None,
    reason: str | None = None,
) -> int: ...  # fmt: skip
def retry_all(
    conn: Any, *, pipeline: PipelineLike | str | None = None, error: str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Any:  # fmt: skip
    """Has all dead jobs run again, or those of a pipeline, or of an error or its kind. Returns how many.

    Await it on an async connection. A thousand are done at a time. On a connection in autocommit each thousand is
    committed by itself; in a transaction, all their workflows are locked until its end. `by` (default: the session's
    actor) and `reason` are kept in `outbox.actions`.
    """
    texts.check_optional(error, "error", texts.MAX_ERROR)
    asked = {"pipeline": None if pipeline is None else name_of(pipeline), "error": error, **_told(by, reason)}
    return execute(conn, _retry_all(asked))


def jobs(asked: dict[str, Any]) -> Steps[list[DeadJob]]:
    """Returns dead jobs."""
    told: list[list[Any]] = [json.loads(text) for (text,) in (yield SQL["dead_jobs"], asked)]
    return [DeadJob(*[*row[:-1], datetime.fromisoformat(row[-1])]) for row in told]


def _told(by: str | None, reason: str | None) -> dict[str, str | None]:
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return {"by": by, "reason": reason}


def _retry(asked: dict[str, Any]) -> Steps[bool]:
    ((made,),) = yield SQL["job_retry"], asked
    return bool(made)


def _retry_all(asked: dict[str, Any]) -> Steps[int]:
    made, after = 0, None
    while True:
        some, after = yield from retry_some(asked, after, BATCH)
        if after is None:
            return made
        made += some


def retry_some(asked: dict[str, Any], after: str | None, limit: int) -> Steps[tuple[int, str | None]]:
    """Retries the dead jobs that come after one. Returns how many, and the last one; None at the end."""
    ((some, last),) = yield SQL["jobs_retry"], {**asked, "after": after, "limit": limit}
    return int(some or 0), last
