"""Defines `Run`, what a handler gets: one attempt at one job, its data, and what it may ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from uuid import UUID

import typing_extensions

from .. import documents, texts
from ..definition.lifespan import NO_RESOURCES
from ..definition.pipeline import Pipeline
from ..definition.step_transaction import StepTransaction
from ..errors import HandlerError, InvalidInput, LeaseLost
from .job import Job, Message
from .job_log import logger_of

Data = TypeVar("Data")
Resources = typing_extensions.TypeVar("Resources", default=Any)


MAX_TOPIC = 255
"""Most characters of a topic: an AMQP routing key has up to 255 bytes."""

MAX_KEY = 1_000
"""Most characters of a key: it is indexed with parked messages, and an index row holds up to 2,700 bytes."""

MAX_PROGRESS = 500
"""Most characters of a progress text: `outbox status` shows it in a table."""

MAX_PUBLISHED = 64 * 2**20
"""Most bytes of messages and children that one attempt writes: they go in one statement, whose limit is 1 GB."""


class Run(Generic[Data, Resources]):
    """Gives a handler one attempt at one job: its data, and what it may ask for.

    `data` is the workflow's metadata as the pipeline's model. `attempt` counts from 1. `idempotency_key` is the same in
    every attempt at this work, and a new one when the workflow comes to the stage again. Pass it to the services that
    you call. `connection` exists in stages with `transaction=True`. `resources` is what the pipeline's lifespan has
    made: to a type checker, that of `Run[Post, Clients]` is a Clients.
    """

    __slots__ = ("_job", "_messages", "_published", "_resources", "_spawned", "_transaction", "data")

    _resources: Resources  # set only where there is a lifespan

    def __init__(self, job: Job, data: Data, connection: Any = None) -> None:
        self._job = job
        self._messages: list[Message] = []
        self._published = 0
        self._spawned: list[dict[str, Any]] = []
        self._transaction = None if connection is None else StepTransaction(connection, f"stage {job.stage.queue}")
        self.data = data

    @property
    def workflow_id(self) -> UUID:
        return UUID(self._job.workflow_id)

    @property
    def entity_id(self) -> str:
        return self._job.entity_id

    @property
    def pipeline(self) -> str:
        return self._job.stage.pipeline

    @property
    def stage(self) -> str:
        return self._job.stage.name

    @property
    def status(self) -> str:
        """The status in which the handler finds the workflow: the stage's `running`, if it has one."""
        return self._job.status

    @property
    def attempt(self) -> int:
        return self._job.attempt

    @property
    def idempotency_key(self) -> str:
        return f"{self._job.workflow_id}:{self._job.stage.name}:{self._job.entered}"

    @property
    def connection(self) -> Any:
        """The psycopg connection, async or sync, whose transaction commits with the status change.

        Raises HandlerError if the stage has none or the handler has ended, LeaseLost if the job was taken away.
        """
        return self._in_transaction().connection

    def on_commit(self, function: Callable[[], Any]) -> None:
        """Has a function called after this step's COMMIT. The stage must have `transaction=True`.

        It is called without arguments, in the event loop or, for a plain handler, in a thread; an async function is
        awaited. If the step isn't committed, it is not called. It is called at most once: never if the process dies
        before, or the answer to the COMMIT is lost. An error in it is logged, and changes nothing. Raises HandlerError
        if the stage has no transaction, LeaseLost if the job was taken away.
        """
        self._in_transaction().on_commit(function)

    @property
    def resources(self) -> Resources:
        """What the pipeline's lifespan has made in this process. Raises HandlerError if it has none."""
        try:
            return self._resources
        except AttributeError:
            raise HandlerError(NO_RESOURCES) from None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the pipeline, the stage, the entity and the attempt with each line."""
        return logger_of(self._job)

    def publish(
        self, topic: str, payload: Any, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Writes a message that is published if, and only if, this attempt commits.

        `payload` is any plain JSON value or a pydantic model. `key` orders messages (default: the entity's id). Raises
        InvalidInput if the message can't be stored, LeaseLost if the job was taken away.
        """
        self._still_held()
        if not isinstance(headers, Mapping | None):
            raise InvalidInput("headers", f"must be a mapping, not {type(headers).__name__}")
        message = Message(
            texts.check_text(topic, "topic", MAX_TOPIC),
            self._job.entity_id if key is None else texts.check_text(key, "key", MAX_KEY),
            documents.dump_any(payload, "payload"),
            None if headers is None else documents.dump_any(dict(headers), "headers"),
        )
        if self._published + message.size > MAX_PUBLISHED:
            raise InvalidInput(
                "payload", f"what one attempt publishes and spawns has more than {MAX_PUBLISHED:,} bytes"
            )
        self._published += message.size
        self._messages.append(message)

    def spawn(self, pipeline: Pipeline[Any], entity_id: str, data: Any, *, cancel: str | None = None) -> None:
        """Starts a workflow as a child of this one if, and only if, this attempt commits.

        An entity that already exists is left alone and doesn't become a child. When this workflow ends before the
        child, the child moves to `cancel` if that is a legal change; without `cancel` it goes on by itself. Raises
        InvalidInput if the child can't be stored, LeaseLost if the job was taken away.
        """
        self._still_held()
        if pipeline.reaction_of is not None:
            raise InvalidInput(
                "pipeline", f"{pipeline.name} is a reaction, which begins with the change that it reacts to"
            )
        child = {
            "pipeline": pipeline.name,
            "entity": texts.check_text(entity_id, "entity_id", documents.MAX_ENTITY_ID),
            "data": pipeline.dump_readable(data),
            "cancel": cancel,
        }
        if cancel is not None and cancel not in pipeline.final:
            raise InvalidInput("cancel", f"{texts.shown(cancel)} is not a final status of pipeline {pipeline.name}")
        self._published += texts.size(*child.values())
        if self._published > MAX_PUBLISHED:
            raise InvalidInput("data", f"what one attempt publishes and spawns has more than {MAX_PUBLISHED:,} bytes")
        self._spawned.append(child)

    def once(self, key: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function and keeps its result: the next attempt at this work gets the result without a call.

        In an async handler, await it, also for sync functions; in a sync handler it returns the result. The result is
        kept as JSON of up to a megabyte, in a transaction of its own, and stays when this attempt fails. It comes back
        as the type of the function's return annotation, such as a pydantic model. The function may be called twice if
        the process dies before the result is kept. Raises HandlerError if the key belongs to another function,
        InvalidInput if the result can't be kept, LeaseLost if the job was taken away.
        """
        self._still_held()
        texts.check_text(key, "key", MAX_TOPIC)
        checkpoints = self._job.checkpoints
        if checkpoints is None:
            raise HandlerError("run.once needs a worker")
        return checkpoints.once(self._job, key, function, args, kwargs)

    def progress(self, text: str) -> None:
        """Reports this attempt's progress, for `outbox show` and `outbox status`. Written about twice a second."""
        self._still_held()
        texts.check_text(text, "progress", MAX_PROGRESS)
        if self._job.checkpoints is not None:
            self._job.checkpoints.note(self._job, text)

    def _in_transaction(self) -> StepTransaction:
        self._still_held()
        if self._transaction is None:
            raise HandlerError(f"stage {self._job.stage.queue} has no connection: define it with transaction=True")
        return self._transaction

    def _still_held(self) -> None:
        if self._job.lost is not None or self._job.late:
            raise LeaseLost(f"{self.pipeline}.{self.stage} {self.entity_id}: {self._job.lost or 'timed out'}")
