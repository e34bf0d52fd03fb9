"""Pauses and resumes stages, in the caller's own transaction, on a sync or an async connection."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, overload

from .. import texts
from ..checks import MAX_NAME, MAX_QUESTION
from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from ..errors import NotFound
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("stages")


@overload
def pause(
    conn: AsyncConn, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Coroutine[Any, Any, bool]: ...  # fmt: skip
@overload
def pause(
    conn: SyncConn, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> bool: ...  # fmt: skip
def pause(
    conn: Any, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Any:  # fmt: skip
    """Pauses a stage: no worker claims for it once this is committed, and running handlers go on.

    Await it on an async connection. `stage` is "enrich" or, if several pipelines have it, "posts.enrich". Returns False
    if it was paused already. `by` (default: the session's actor) and `reason` are kept.

    Raises InvalidInput before any SQL if a value can't be stored, and NotFound unless `stage` means exactly one stage
    of the deployed pipelines.
    """
    return execute(conn, _change("stage_pause", *_checked(stage, pipeline, by, reason)))


@overload
def resume(
    conn: AsyncConn, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Coroutine[Any, Any, bool]: ...  # fmt: skip
@overload
def resume(
    conn: SyncConn, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> bool: ...  # fmt: skip
def resume(
    conn: Any, stage: str, *, pipeline: PipelineLike | str | None = None, by: str | None = None,
    reason: str | None = None,
) -> Any:  # fmt: skip
    """Resumes a paused stage: workers claim for it again within about a second. Await it on an async connection.

    Returns False if it was not paused. Parameters and errors are those of `pause`.
    """
    return execute(conn, _change("stage_resume", *_checked(stage, pipeline, by, reason)))


def find(stage: str, pipeline: str | None) -> Steps[tuple[str, str]]:
    """Returns the pipeline and the stage that a name means. Raises NotFound unless it means exactly one stage."""
    found = yield SQL["stages_named"], {"stage": stage, "pipeline": pipeline}
    if not found:
        ((near,),) = yield SQL["stage_nearest"], {"stage": stage, "pipeline": pipeline}
        of = "no pipeline that is deployed here" if pipeline is None else f'no deployed pipeline "{pipeline}"'
        raise NotFound(f'{of} has a stage "{stage}"{f"; did you mean {near}?" if near else ""}')
    if len(found) > 1:
        names = ", ".join(f"{of}.{name}" for of, name in found)
        raise NotFound(f'"{stage}" is a stage of several pipelines: say one of {names}')
    of, name = found[0]
    return of, name


def _checked(
    stage: str, pipeline: PipelineLike | str | None, by: str | None, reason: str | None
) -> tuple[str, str | None, dict[str, Any]]:
    texts.check_text(stage, "stage", MAX_NAME)
    texts.check_optional(by, "by", MAX_NAME)
    texts.check_optional(reason, "reason", MAX_QUESTION)
    return stage, None if pipeline is None else name_of(pipeline), {"by": by, "reason": reason}


def _change(name: str, stage: str, pipeline: str | None, told: dict[str, Any]) -> Steps[bool]:
    of, found = yield from find(stage, pipeline)
    ((changed,),) = yield SQL[name], {"pipeline": of, "stage": found, **told}
    return bool(changed)
