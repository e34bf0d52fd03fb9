"""Step 3: run one handler. Validated data in, an outcome out; no database, unless the handler asked for it.

Whatever a handler does (raises SystemExit, returns nonsense, raises an exception that can't be printed), what
comes out is an outcome, so that no worker ends because of a handler or of data.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import ValidationError

from .. import documents
from ..definition.data import TooNewData
from ..definition.limits import is_late
from ..definition.pipeline import Pipeline
from ..documents import printable
from ..errors import HandlerError, InvalidInput, LeaseLost
from .job import Failed, Finished, Job, Message, Missed, Outcome, fail

Data = TypeVar("Data")

MAX_TOPIC = 255
MAX_KEY = 1_000
MAX_PROGRESS = 500
MAX_PUBLISHED = 64 * 2**20
"""How many characters of messages one attempt publishes at most: they are one statement, which ends at 1 GB."""

NEWER_WORKER = 10.0
"""Seconds until a job is offered again whose data only newer code can read."""


class Run(Generic[Data]):
    """What a handler is given: one attempt at one job.

    `data` is the workflow's metadata as the pipeline's model. `attempt` counts from 1. `idempotency_key` is the
    same in every attempt at this work and another one when the workflow comes to the stage again: give it to
    whatever is called outside. `connection` is there in stages with `transaction=True`.
    """

    __slots__ = ("_connection", "_job", "_messages", "_published", "_spawned", "data")

    def __init__(self, job: Job, data: Data, connection: Any = None) -> None:
        self._job = job
        self._messages: list[Message] = []
        self._published = 0
        self._spawned: list[dict[str, Any]] = []
        self._connection = connection
        self.data = data

    @property
    def workflow_id(self) -> UUID:
        return UUID(self._job.workflow_id)

    @property
    def entity_id(self) -> str:
        return self._job.entity_id

    @property
    def pipeline(self) -> str:
        return self._job.stage.pipeline.name

    @property
    def stage(self) -> str:
        return self._job.stage.name

    @property
    def status(self) -> str:
        """The status that the workflow had when the job was claimed."""
        return self._job.status

    @property
    def attempt(self) -> int:
        return self._job.attempt

    @property
    def idempotency_key(self) -> str:
        return f"{self._job.workflow_id}:{self._job.stage.name}:{self._job.entered}"

    @property
    def connection(self) -> Any:
        """The psycopg connection whose transaction commits with the status change (async or sync, as the handler)."""
        self._still_held()
        if self._connection is None:
            raise HandlerError(f"stage {self._job.stage.queue} has no connection: define it with transaction=True")
        return self._connection

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names pipeline, stage, entity and attempt with each line."""
        return _JobLogger(
            logging.getLogger(f"outbox.stage.{self.pipeline}.{self.stage}"),
            {
                "pipeline": self.pipeline,
                "stage": self.stage,
                "entity": self.entity_id,
                "attempt": self.attempt,
            },
        )

    def publish(
        self, topic: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write a message that is published if, and only if, this attempt commits.

        `payload` is any plain JSON value or a pydantic model; `key` orders messages (default: the entity's id).
        InvalidInput if it can't be stored, LeaseLost if the job was taken away.
        """
        self._still_held()
        if not isinstance(headers, Mapping | None):
            raise InvalidInput("headers", f"must be a mapping, not {type(headers).__name__}")
        message = Message(
            documents.check_text(topic, "topic", MAX_TOPIC),
            self._job.entity_id if key is None else documents.check_text(key, "key", MAX_KEY),
            documents.dump_any(payload, "payload"),
            None if headers is None else documents.dump_any(dict(headers), "headers"),
        )
        if self._published + message.size > MAX_PUBLISHED:
            raise InvalidInput("payload", f"the messages of one attempt have more than {MAX_PUBLISHED:,} characters")
        self._published += message.size
        self._messages.append(message)

    def spawn(self, pipeline: Pipeline[Any], entity_id: str, data: Any, *, cancel: str | None = None) -> None:
        """Start a workflow as a child of this one, if, and only if, this attempt commits.

        An entity that is there already is left alone, and is no child by this. When this workflow ends before the
        child, the child moves to `cancel`, from where that is a legal change; without it, it goes on alone.
        InvalidInput if it can't be stored, LeaseLost if the job was taken away.
        """
        self._still_held()
        child = {
            "pipeline": pipeline.name,
            "entity": documents.check_text(entity_id, "entity_id", documents.MAX_ENTITY_ID),
            "data": pipeline.dump_readable(data),
            "cancel": cancel,
        }
        if cancel is not None and cancel not in pipeline.final:
            raise InvalidInput("cancel", f"{documents.shown(cancel)} is no final status of pipeline {pipeline.name}")
        self._published += len(child["data"] or "")
        if self._published > MAX_PUBLISHED:
            raise InvalidInput(
                "data", f"what one attempt publishes and spawns has more than {MAX_PUBLISHED:,} characters"
            )
        self._spawned.append(child)

    def once(self, key: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function whose result is kept: the next attempt at this work is given it, and calls nothing.

        Awaited in an async handler, for sync functions too; in a plain one it returns the result. It is kept as JSON,
        of up to a megabyte, in a transaction of its own: also if this attempt fails. It is given back as what the
        function says that it returns, such as a pydantic model. A call may be made twice, when the process dies
        between the call and the keeping. HandlerError if the key was another function's, InvalidInput if the result
        can't be kept, LeaseLost if the job was taken away.
        """
        self._still_held()
        documents.check_text(key, "key", MAX_TOPIC)
        checkpoints = self._job.checkpoints
        if checkpoints is None:
            raise HandlerError("run.once needs a worker")
        once = checkpoints.once if self._job.stage.is_async else checkpoints.once_in_thread
        return once(self._job, key, function, args, kwargs)

    def progress(self, text: str) -> None:
        """Say how far this attempt is; `outbox show` and `outbox status` tell. Written about twice a second."""
        self._still_held()
        documents.check_text(text, "progress", MAX_PROGRESS)
        if self._job.checkpoints is not None:
            self._job.checkpoints.note(self._job, text)

    def _still_held(self) -> None:
        if self._job.lost is not None:
            raise LeaseLost(f"{self.pipeline}.{self.stage} {self.entity_id}: {self._job.lost}")


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        where = f"{extra['pipeline']}.{extra['stage']} {printable(extra['entity'])} #{extra['attempt']}"
        return f"{where}: {msg}", kwargs


def begin(job: Job, connection: Any = None) -> Run[Any] | Failed:
    """Return what the handler is given; Failed, for good, if the stored data doesn't fit the model."""
    try:
        return Run(job, job.stage.pipeline.load(job.metadata), connection)
    except ValidationError as error:
        return Failed(f"the stored metadata doesn't fit the pipeline's data: {documents.explain(error)}", None)
    except TooNewData as error:  # it is a newer worker's, whenever that comes
        return Failed(documents.describe(error), NEWER_WORKER)
    except HandlerError as error:
        return Failed(documents.describe(error), None)
    except BaseException as error:  # validators are the user's code, as handlers are
        return fail(job, error)


async def handle_async(runs: Sequence[Run[Any]]) -> list[Outcome]:
    """Run an async handler in the event loop, with one run or, in a stage with `batch`, with all of them."""
    if _too_late(runs):
        return [Missed() for _ in runs]
    try:
        return finish(runs, await _call(runs))
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # the worker's own cancellation, not the handler's
        return [fail(run._job, error) for run in runs]


def handle_sync(runs: Sequence[Run[Any]]) -> list[Outcome]:
    """Run a sync handler in the calling thread."""
    if _too_late(runs):
        return [Missed() for _ in runs]
    try:
        return finish(runs, _call(runs))
    except BaseException as error:
        return [fail(run._job, error) for run in runs]


def _too_late(runs: Sequence[Run[Any]]) -> bool:
    """Asked here, at the last moment: a connection or a thread may have been long in coming."""
    return any(is_late(run._job.begins, time.monotonic()) for run in runs)


def _call(runs: Sequence[Run[Any]]) -> Any:
    stage = runs[0]._job.stage
    return stage.handler(runs[0] if stage.batch is None else list(runs))


def finish(runs: Sequence[Run[Any]], result: Any) -> list[Outcome]:
    """Return the outcomes of what a handler returned."""
    stage = runs[0]._job.stage
    if stage.batch is None:
        results = [result]
    elif result is None:
        results = [None] * len(runs)
    elif not isinstance(result, list | tuple) or len(result) != len(runs):
        what = f"{len(result)} results" if isinstance(result, list | tuple) else f"a {type(result).__name__}"
        raise HandlerError(
            f"stage {stage.queue} returned {what} for {len(runs)} runs: return a list of as many, or None"
        )
    else:
        results = list(result)
    outcomes: list[Outcome] = []
    for run, one in zip(runs, results, strict=True):
        try:
            status, data, wait = stage.outcome(one)
            if run._spawned:
                wait = {**(wait or {}), "spawn": run._spawned}
            outcomes.append(Finished(status, data, run._messages, wait))
        except InvalidInput as error:
            raise HandlerError(f"stage {stage.queue} returned data that can't be stored: {error}") from None
    return outcomes
