"""Says how many workflows and jobs are where, on a sync or an async connection."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, overload

from ..database import statements
from ..database.drivers.connection import AsyncConn, SyncConn
from . import flow
from .execute import Steps, execute
from .pipelines import PipelineLike, name_of

SQL = statements.load("overview")


@dataclass(frozen=True, slots=True)
class StatusCount:
    """How many workflows of a pipeline are in a status, and how many of their jobs are in which state.

    `stage` takes the status; None: a workflow waits in it or has ended. `oldest_waiting_seconds` is the age of the job
    that is first in line. `paused` is whether the stage is paused, and `served` whether a living worker serves it.
    """

    pipeline: str
    status: str
    stage: str | None
    workflows: int
    ready: int
    scheduled: int
    running: int
    dead: int
    oldest_waiting_seconds: float | None
    paused: bool
    served: bool


@overload
def status(
    conn: AsyncConn, *, pipeline: PipelineLike | str | None = None
) -> Coroutine[Any, Any, list[StatusCount]]: ...
@overload
def status(conn: SyncConn, *, pipeline: PipelineLike | str | None = None) -> list[StatusCount]: ...
def status(conn: Any, *, pipeline: PipelineLike | str | None = None) -> Any:
    """Returns a row for each status of each pipeline, or of one, in the order in which workflows go through them.

    Await it on an async connection. Nothing is counted when you ask: it is fast at a million workflows.
    """
    return execute(conn, counts(None if pipeline is None else name_of(pipeline)))


def counts(pipeline: str | None) -> Steps[list[StatusCount]]:
    """Does what `status` does, as steps."""
    asked = {"pipeline": pipeline}
    found = [StatusCount(*row) for row in (yield SQL["overview"], asked)]
    places = {
        (of, status): place
        for of, initial, changes, final in (yield SQL["flows"], asked)
        for place, status in enumerate(
            flow.order(initial, [tuple(change) for change in json.loads(changes)], json.loads(final))
        )
    }
    return sorted(found, key=lambda row: (row.pipeline, places.get((row.pipeline, row.status), 0)))
