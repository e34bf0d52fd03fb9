"""What the steps hand on: a claimed job, and the outcome of an attempt at it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..database.statements import array
from ..definition.outcome import failure
from ..definition.reasons import from_handler
from ..definition.stage import Stage
from ..definition.waits.wait import WaitJson


class Kept(Protocol):
    """What an attempt leaves for the next one: results of calls, and how far it is. See checkpoint.py."""

    def once(self, job: Job, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...

    def note(self, job: Job, text: str) -> None: ...


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
    deadline: float = 0.0  # of the attempt, by this process's monotonic clock
    start_time: float = 0.0  # where the stage has a rate, by the server's clock,
    starts: float = 0.0  # and by this process's monotonic clock
    checkpoints: Kept | None = None

    def take_away(self, why: str) -> None:
        """Tells the attempt that nothing it does counts any more, and cancels it where that is possible."""
        self.lost = why
        if self.task is not None:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is written with the status change. `payload` and `headers` are JSON text."""

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
    """The attempt failed: try again after `delay` seconds, or never (None). `error` is storable text.

    `raised` is the exception, without our own frames: the log tells its traceback, and a dead job keeps it.
    """

    error: str
    delay: float | None
    raised: BaseException | None = None
    plain: bool = False

    def as_plain(self) -> Failed:
        """Returns the same in ASCII, for a database whose encoding doesn't have all characters of its texts."""
        return replace(self, error=self.error.encode("ascii", "replace").decode(), plain=True)


@dataclass(frozen=True, slots=True)
class Missed:
    """The handler was not called: the start time that its stage's rate gave it has passed."""


Outcome = Finished | Failed | Missed


def actor(worker: int) -> str:
    """Returns how the history names a worker."""
    return f"worker-{worker}"


def fence(jobs: Sequence[Job]) -> dict[str, Any]:
    """Returns the parameters by which a statement tells which attempts of one owner still count."""
    return {
        "worker": jobs[0].owner,
        "ids": array(job.workflow_id for job in jobs),
        "jobs": array(job.id for job in jobs),
        "attempts": array(job.attempt for job in jobs),
    }


def refused(job: Job, error: BaseException) -> Failed:
    """Returns the outcome of an attempt whose commit the database has refused: no handler is in the traceback."""
    error.__context__ = None
    return fail(job, error.with_traceback(None))


def fail(job: Job, error: BaseException) -> Failed:
    """Returns the outcome of an attempt that raised `error`: retried as Retry or the back-off says, or dead."""
    return Failed(*failure(error, job.stage.retry, job.attempt), from_handler(error))
