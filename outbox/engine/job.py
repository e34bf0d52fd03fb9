"""Defines what the steps pass on: a claimed job, and the outcome of an attempt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..database.refusals import error_of
from ..database.statements import array
from ..definition.effect import Asked
from ..definition.outcome import failure
from ..definition.reasons import from_handler
from ..definition.run import Held, Kept, Message
from ..definition.stage import Stage
from ..definition.step_transaction import Hook
from ..definition.waits.wait import WaitJson
from ..errors import IllegalChange, UnknownStatus

NEWER_WORKER = 10.0
"""Seconds until a job is offered again that only newer code can run: a deploy that is under way takes longer."""

NEWER_WORKER_LONGEST = 600.0
"""Seconds that it waits at most before the next worker tries."""

NEWER_WORKER_MOST = 20
"""How often it is offered, over about three hours: after that no newer code is on its way."""


@dataclass(slots=True)
class Job:
    """A claimed job: the stage, the data, and the fence (id, owner, attempt, version).

    `status` is the workflow's status. It is empty if the job belongs to another pipeline or to a version yet to come.
    """

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
    alone: bool = False  # its batch failed: its next transaction is its own
    task: asyncio.Future[Any] | None = None
    begun: bool = False  # its handler was called
    deadline: float = 0.0  # of the attempt, by this process's monotonic clock
    turn_over: bool = False  # its handler has returned, and others take turns in the same transaction
    took: float = 0.0  # seconds, its handler in a transaction of its own
    late: bool = False  # it is past the deadline, and kept because the stage's limits count a thread that still runs
    lost_at: float = 0.0  # by the same clock
    start_time: float = 0.0  # where the stage has a rate, by the server's clock,
    starts: float = 0.0  # and by this process's monotonic clock
    checkpoints: Kept | None = None

    def begin(self) -> None:
        """Starts the attempt's timeout: its handler is called now, and no earlier."""
        self.begun, self.deadline = True, time.monotonic() + self.stage.timeout

    def take_away(self, why: str, *, cancel_in: float = 0.0) -> None:
        """Tells the attempt that nothing it does counts any more, and cancels it where that is possible."""
        self.lost, self.lost_at = why, time.monotonic()
        if self.task is None:
            return
        # Not at once: a task that is cancelled before its first step never runs the code that frees its slot.
        self.task.get_loop().call_later(cancel_in, self.task.cancel)


# Outcomes are made with each step, and a frozen dataclass takes three times as long to make.


@dataclass(slots=True)
class Finished:
    """The handler returned: the next status, new data as JSON (None: unchanged), messages, and what it waits for.

    `hooks` are called after the commit.
    """

    status: str
    data: str | None
    messages: list[Message]
    wait: WaitJson | None = None
    hooks: Sequence[Hook] = ()

    @property
    def size(self) -> int:
        """Roughly how many bytes its commit writes."""
        size = len(self.data or "") + (len(str(self.wait)) if self.wait else 0)
        for message in self.messages:
            size += message.size
        return size


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt failed: it is retried after `delay` seconds, or never (None). `error` is storable text.

    `raised` is the exception, without our own frames: the log tells its traceback, and a dead job keeps it. `in_row`:
    the job was put back too often, and its put-backs go on being counted.
    """

    error: str
    delay: float | None
    raised: BaseException | None = None
    plain: bool = False
    in_row: bool = False

    def as_plain(self) -> Failed:
        """Returns this failure in ASCII, for a database whose encoding lacks some characters of its texts."""
        return replace(self, error=self.error.encode("ascii", "replace").decode(), plain=True)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt failed through no fault of its handler, so that its job is put back and the attempt isn't counted.

    The put-backs of a job are counted instead. The first one waits for `first` seconds, the second for `next`, each
    further one for twice as long as the one before, up to `longest`. After `most` of them the attempt fails with
    `reason`. With `avoid` other workers have the first try. With `if_routed` there must be such workers: the pipeline
    as it is deployed has this stage take the workflow's status. Else the attempt fails at once. A job of which people
    are `asked` something is not put back, but waits for their answers, unless another session holds its workflow.
    """

    reason: str
    first: float = 0.0
    next: float = 0.1
    longest: float = 60.0
    most: int = 10
    avoid: bool = False
    if_routed: bool = False
    asked: tuple[Asked, ...] = ()


def newer_worker(reason: str, *, if_routed: bool = False) -> Trouble:
    """Returns why a job is put back that the code of another worker can run."""
    first = NEWER_WORKER
    return Trouble(reason, first, 2 * first, NEWER_WORKER_LONGEST, NEWER_WORKER_MOST, avoid=True, if_routed=if_routed)


@dataclass(frozen=True, slots=True)
class PutBack:
    """The handler was not called, for a reason that is not its fault."""

    trouble: Trouble


@dataclass(frozen=True, slots=True)
class Missed:
    """The handler was not called, because the start time that its stage's rate assigned has passed."""


Outcome = Finished | Failed | PutBack | Missed


def actor(worker: int) -> str:
    """Returns the worker's name in the history."""
    return f"worker-{worker}"


def fence(jobs: Sequence[Job]) -> dict[str, Any]:
    """Returns the parameters by which a statement checks which attempts of one owner still count."""
    return {
        "worker": jobs[0].owner,
        "ids": array(job.workflow_id for job in jobs),
        "jobs": array(job.id for job in jobs),
        "attempts": array(job.attempt for job in jobs),
    }


def refused(job: Job, error: BaseException) -> Failed | PutBack:
    """Returns the outcome of an attempt whose commit the database refused. The traceback has no frames of a handler.

    PutBack if the change is not legal in the pipelines as they are deployed, or names a status that they don't have.
    The code has checked it, so a deploy has come since this worker started, or a newer pipeline is not deployed yet.
    """
    known = error_of(error)
    if isinstance(known, IllegalChange | UnknownStatus) and known.entity_id == job.entity_id:
        told = f"{known.diag.message_primary}: the deployed pipelines are not those of this worker's code"
        return PutBack(newer_worker(told, if_routed=True))
    error.__context__ = None
    return fail(job, error.with_traceback(None))


def fail(job: Held, error: BaseException) -> Failed:
    """Returns the outcome of an attempt that raised `error`: retried by Retry or the back-off, or dead."""
    return Failed(*failure(error, job.stage.retry, job.attempt), from_handler(error))
