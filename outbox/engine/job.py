"""What the steps hand on: a claimed job, and the outcome of an attempt at it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import texts
from ..checks import as_delay
from ..database.statements import array
from ..definition.outcome import Reject, Retry
from ..definition.stage import Stage
from ..definition.waits.wait import WaitJson

if TYPE_CHECKING:
    from .checkpoint import Checkpoints


@dataclass(slots=True)
class Job:
    """A claimed job: what to do, the data to do it on, and the fence (id, owner, attempt, version)."""

    stage: Stage
    owner: int
    id: int
    workflow_id: str
    entered: int
    attempt: int
    careful: bool
    entity_id: str
    status: str
    version: int
    metadata: str
    lost: str | None = None  # why this attempt's writes no longer count
    alone: bool = False  # it was in a batch that failed: its next transaction is its own
    task: asyncio.Future[Any] | None = None
    deadline: float = 0.0
    begins: float = 0.0  # its moment, where the stage has a rate: by this process's clock,
    moment: float = 0.0  # and by the server's
    checkpoints: Checkpoints | None = None

    def take_away(self, why: str) -> None:
        """Tell the attempt that nothing it does counts any more, and cancel it where that is possible."""
        self.lost = why
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    key: str | None
    payload: str
    headers: str | None

    @property
    def size(self) -> int:
        return len(self.payload) + len(self.headers or "")


@dataclass(frozen=True, slots=True)
class Finished:
    """The handler returned: the next status, new data as JSON (None: unchanged), messages, and what it waits for."""

    status: str
    data: str | None
    messages: list[Message]
    wait: WaitJson | None = None

    @property
    def size(self) -> int:
        """How many characters of JSON its commit writes."""
        size = len(self.data or "") + (len(str(self.wait)) if self.wait else 0)
        for message in self.messages:
            size += message.size
        return size


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed: try again after `delay` seconds, or never (None). `error` is storable text."""

    error: str
    delay: float | None


@dataclass(frozen=True, slots=True)
class Missed:
    """The handler was not called: the moment that its stage's rate had for it was over."""


Outcome = Finished | Failed | Missed


def actor(worker: int) -> str:
    """How the history names a worker."""
    return f"worker-{worker}"


def fence(jobs: Sequence[Job]) -> dict[str, Any]:
    """The parameters by which a statement tells which attempts of one owner still count."""
    return {
        "worker": jobs[0].owner,
        "ids": array(job.workflow_id for job in jobs),
        "jobs": array(job.id for job in jobs),
        "attempts": array(job.attempt for job in jobs),
    }


def fail(job: Job, error: BaseException) -> Failed:
    """Return the outcome of an attempt that raised `error`: later by Retry or back-off, or dead."""
    if isinstance(error, Reject):
        return Failed(texts.clean(_message(error)), None)
    delay = job.stage.retry.delay(job.attempt)
    if isinstance(error, Retry):
        # Looked at here, too: one that was changed after it was made would fail the commit of a whole batch.
        if delay is not None and (after := as_delay(error.after)) is not None:
            delay = after
        return Failed(texts.clean(_message(error)), delay)
    return Failed(texts.describe(error), delay)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return texts.describe(error)
