"""Defines `Run`, what a handler gets: one attempt at one job, its data, and what it may ask for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload
from uuid import UUID

import psycopg
import typing_extensions
from psycopg.rows import TupleRow

from .. import documents, texts
from ..client.publish import MAX_TOPIC, checked
from ..documents import EntityId
from ..errors import HandlerError, InvalidInput, LeaseLost
from . import effect
from .blob import Blob, Content, handle
from .data import HasData
from .effect import Effects, OnUnknown
from .lifespan import NO_RESOURCES
from .stage import Stage
from .step_log import logger_of
from .step_transaction import StepTransaction

Data = TypeVar("Data")
Resources = typing_extensions.TypeVar("Resources", default=Any)
Of = TypeVar("Of")
Result = TypeVar("Result")
Given = ParamSpec("Given")


MAX_PROGRESS = 500
"""Most characters of a progress text: `outbox status` shows it in a table."""

MAX_PUBLISHED = 64 * 2**20
"""Most bytes of messages and children that one attempt writes: they go in one statement, whose limit is 1 GB."""


# Messages are made with each step, and a frozen dataclass takes three times as long to make.
@dataclass(slots=True)
class Message:
    """A message that is written with the status change. `payload` and `headers` are JSON texts, `size` is in bytes."""

    topic: str
    key: str | None
    payload: str
    headers: str | None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = texts.size(self.topic, self.key, self.payload, self.headers)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A child that this attempt starts if it commits, named as `Pipeline.get` takes it.

    `workflow_id` is None as long as it isn't known.
    """

    pipeline: str
    entity_id: str
    workflow_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Child(Generic[Data]):
    """A child of a workflow: its status, whether it has ended, and its data as its pipeline's type.

    `data` is None if it was erased.
    """

    workflow_id: UUID
    entity_id: str
    status: str
    ended: bool
    data: Data


@dataclass(frozen=True, slots=True)
class Answer:
    """How a question of a workflow has ended.

    `ended` is "decided", "deadline" or "withdrawn". `decision` is one of the question's options. It is None if nobody
    has decided, or if somebody moved the workflow by hand to a status to which several options lead. `about` is what a
    question with data of its own was about, with the edit of who has answered; None for other questions.
    """

    name: str | None
    question: str
    ended: str
    decision: str | None
    by: str | None
    reason: str | None
    about: Any = field(repr=False)
    edited: bool


class Kept(Protocol):
    """What a worker does for a handler: results of calls, effects, large contents, progress, children, answers."""

    def once(self, job: Any, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any: ...

    def effect(
        self, job: Any, effects: Effects, name: str, function: Callable[..., Any], args: Any, kwargs: Any,
        on_unknown: OnUnknown,
    ) -> Any: ...  # fmt: skip

    def store(self, job: Any, content: Content) -> Any: ...

    def load(self, job: Any, blob: Blob) -> Any: ...

    def stream(self, job: Any, blob: Blob) -> Any: ...

    def note(self, job: Any, text: str) -> None: ...

    def trusted(self) -> bool: ...

    def children(self, job: Any, pipeline: Any) -> Any: ...

    def answers(self, job: Any, back: int | None = None) -> Any: ...


class Held(Protocol):
    """The part of a claimed job that its attempt uses. `lost` says why the attempt no longer counts."""

    stage: Stage
    workflow_id: str
    entity_id: str
    status: str
    attempt: int
    entered: int
    lost: str | None
    late: bool
    starts: float
    task: asyncio.Future[Any] | None
    checkpoints: Kept | None

    def begin(self) -> None: ...


class Run(Generic[Data, Resources]):
    """Gives a handler one attempt at one job: its data, and what it may ask for.

    `data` is the workflow's metadata as the pipeline's model. `attempt` counts from 1. `idempotency_key` is the same in
    every attempt at this work, and a new one when the workflow comes to the stage again. Pass it to the services that
    you call. `connection` exists in stages with `transaction=True`. `resources` is what the pipeline's lifespan has
    made: to a type checker, that of `Run[Post, Clients]` is a Clients. In a plain function, the run is a `SyncRun`.
    """

    __slots__ = ("_effects", "_job", "_messages", "_published", "_resources", "_spawned", "_transaction", "data")

    _resources: Resources  # set only where there is a lifespan

    def __init__(self, job: Held, data: Data, connection: Any = None) -> None:
        self._job = job
        self._effects: Effects | None = None
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
    def connection(self) -> psycopg.AsyncConnection[TupleRow]:
        """The psycopg connection whose transaction commits with the status change.

        Raises HandlerError if the stage has none or the handler has ended, LeaseLost if the job was taken away.
        """
        found: psycopg.AsyncConnection[TupleRow] = self._in_transaction().connection
        return found

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
        message = Message(*checked(topic, payload, self._job.entity_id if key is None else key, headers))
        if self._published + message.size > MAX_PUBLISHED:
            raise InvalidInput(
                "payload", f"what one attempt publishes and spawns has more than {MAX_PUBLISHED:,} bytes"
            )
        self._published += message.size
        self._messages.append(message)

    def spawn(
        self, pipeline: HasData[Of], entity_id: EntityId, data: Of | Mapping[str, Any], *, cancel: str | None = None
    ) -> Spawned:
        """Starts a workflow as a child of this one if, and only if, this attempt commits. Returns what names it.

        An entity that already exists is left alone and doesn't become a child. When this workflow ends before the
        child, the child moves to `cancel` if that is a legal change; without `cancel` it goes on by itself. Raises
        InvalidInput if the child can't be stored, LeaseLost if the job was taken away.
        """
        self._still_held()
        if pipeline.reaction_of is not None:
            raise InvalidInput(
                "pipeline", f"{pipeline.name} is a reaction, which begins with the change that it reacts to"
            )
        child: dict[str, Any] = {
            "pipeline": pipeline.name,
            "entity": documents.entity(entity_id),
            "data": pipeline.dump_readable(data),
            "cancel": cancel,
        }
        if cancel is not None and cancel not in pipeline.final:
            raise InvalidInput("cancel", f"{texts.shown(cancel)} is not a final status of pipeline {pipeline.name}")
        self._published += texts.size(*child.values())
        if self._published > MAX_PUBLISHED:
            raise InvalidInput("data", f"what one attempt publishes and spawns has more than {MAX_PUBLISHED:,} bytes")
        self._spawned.append(child)
        return Spawned(pipeline.name, child["entity"])

    @overload
    def once(
        self, key: str, function: Callable[Given, Coroutine[Any, Any, Result]], *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Coroutine[Any, Any, Result]: ...  # fmt: skip
    @overload
    def once(
        self, key: str, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Coroutine[Any, Any, Result]: ...
    def once(self, key: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function and keeps its result: the next attempt at this work gets the result without a call.

        In an async handler, await it, also for plain functions; in a plain handler it returns the result. The result is
        kept as JSON of up to 64 MB, in a transaction of its own, and stays when this attempt fails. It comes back
        as the type of the function's return annotation, such as a pydantic model. The function may be called twice if
        the process dies before the result is kept. Raises HandlerError if the key belongs to another function,
        InvalidInput if the result can't be kept, LeaseLost if the job was taken away.
        """
        return self._once(key, function, args, kwargs)

    def _once(self, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._still_held()
        texts.check_text(key, "key", MAX_TOPIC)
        return self._worker("once").once(self._job, key, function, args, kwargs)

    @overload
    def effect(
        self, name: str, function: Callable[..., Coroutine[Any, Any, Result]], *args: Any,
        on_unknown: OnUnknown = "ask", **kwargs: Any,
    ) -> Coroutine[Any, Any, Result]: ...  # fmt: skip
    @overload
    def effect(
        self, name: str, function: Callable[..., Result], *args: Any, on_unknown: OnUnknown = "ask", **kwargs: Any
    ) -> Coroutine[Any, Any, Result]: ...
    def effect(
        self, name: str, function: Callable[..., Any], *args: Any, on_unknown: OnUnknown = "ask", **kwargs: Any
    ) -> Any:
        """Calls a function whose effect must not happen twice, such as a payment, and keeps its result.

        In an async handler, await it, also for plain functions; in a plain handler it returns the result. The intention
        is committed before the call, and the result after it. Later attempts get the result without a call. The result
        is kept as by `once`. If the function has a parameter `idempotency_key`, it gets `effect_key(name)`.

        An effect is unknown if its attempt ended without a result, or if the function raised anything but `NotDone`.
        The call is not repeated then: `on_unknown` says how it becomes known. "ask", or `Ask(…)`, parks the job in its
        status until a person has answered. A function is called with the effect's idempotency key, and returns
        `Done(result)`, `NotDone()` or `Ask()`. "repeat" makes the call again. No attempt commits while an effect of it
        is unknown, whatever the handler does with the error.

        Raises what the function raises, EffectUnknown if a person is asked, HandlerError if this attempt has used the
        name already or another function has, InvalidInput if the result can't be kept, LeaseLost if the job was taken
        away.
        """
        return self._effect(name, function, args, on_unknown, kwargs)

    def _effect(self, name: str, function: Callable[..., Any], args: Any, on_unknown: OnUnknown, kwargs: Any) -> Any:
        self._still_held()
        key, stage, worker = self.effect_key(name), self._job.stage, self._worker("effect")
        effect.checked(function, on_unknown, is_async=stage.is_async)
        kwargs = effect.with_key(function, args, kwargs, key)
        if self._effects is None:
            self._effects = Effects()
        self._effects.begin(name, f"stage {stage.queue}")
        return worker.effect(self._job, self._effects, name, function, args, kwargs, on_unknown)

    async def _others_end(self) -> None:
        if self._effects is not None:
            await self._effects.under_way.others_end()

    def effect_key(self, name: str) -> str:
        """Returns the idempotency key of an effect: the same in every attempt, whatever the stage is called."""
        texts.check_text(name, "name", MAX_TOPIC)
        return effect.effect_key(self._job.workflow_id, self._job.entered, name)

    def store(self, content: Content) -> Coroutine[Any, Any, Blob]:
        """Stores up to a gigabyte beside the data, and returns the handle by which data names it.

        `content` is bytes, a binary file, or an iterable of bytes, also an async one. Only a few megabytes of it are in
        memory at a time, and parts that another content has are not stored again. It is there for this work, and as
        long as the workflow's data has the handle. In an async handler, await it; in a plain handler it returns the
        handle. Raises InvalidInput if the content can't be stored, LeaseLost if the job was taken away.
        """
        stored: Coroutine[Any, Any, Blob] = self._store(content)
        return stored

    def _store(self, content: Content) -> Any:
        self._still_held()
        return self._worker("store").store(self._job, content)

    def load(self, blob: Blob | Mapping[str, Any]) -> Coroutine[Any, Any, bytes]:
        """Returns a content that was stored. Raises NotFound if it isn't there, InvalidInput if `blob` is no handle.

        In an async handler, await it; in a plain handler it returns the bytes.
        """
        loaded: Coroutine[Any, Any, bytes] = self._worker("load").load(self._job, handle(blob))
        return loaded

    def stream(self, blob: Blob | Mapping[str, Any]) -> AsyncGenerator[bytes]:
        """Yields a content that was stored, in parts of up to 256 kB. Raises as `load` does.

        In an async handler, use it in `async for`; in a plain handler, in `for`.
        """
        streamed: AsyncGenerator[bytes] = self._worker("stream").stream(self._job, handle(blob))
        return streamed

    def children(self, pipeline: HasData[Of]) -> Coroutine[Any, Any, list[Child[Of]]]:
        """Returns the children of this workflow in a pipeline, in the order of their entities, up to 10,000.

        In an async handler, await it; in a plain handler it returns them. Those that this attempt spawns are not among
        them. Raises HandlerError if there are more, LeaseLost if the job was taken away.
        """
        found: Coroutine[Any, Any, list[Child[Of]]] = self._children(pipeline)
        return found

    def _children(self, pipeline: HasData[Any]) -> Any:
        self._still_held()
        return self._worker("children").children(self._job, pipeline)

    def answers(self) -> Coroutine[Any, Any, list[Answer]]:
        """Returns the answers to the questions that the workflow has waited for last.

        In an async handler, await it; in a plain handler it returns them. The list is empty if it has never asked.
        Raises LeaseLost if the job was taken away.
        """
        found: Coroutine[Any, Any, list[Answer]] = self._answers()
        return found

    def _answers(self, back: int | None = None) -> Any:
        self._still_held()
        return self._worker("answers").answers(self._job, back)

    def _worker(self, what: str) -> Kept:
        if self._job.checkpoints is None:
            raise HandlerError(f"run.{what} needs a worker")
        return self._job.checkpoints

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


class SyncRun(Run[Data, Resources]):
    """A `Run` as a plain function gets it: what an async handler awaits, it returns."""

    __slots__ = ()

    @property
    def connection(self) -> psycopg.Connection[TupleRow]:  # type: ignore[override]
        """The psycopg connection whose transaction commits with the status change. See `Run.connection`."""
        found: psycopg.Connection[TupleRow] = self._in_transaction().connection
        return found

    def once(  # type: ignore[override]
        self, key: str, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Calls a function and keeps its result. See `Run.once`."""
        result: Result = self._once(key, function, args, kwargs)
        return result

    def effect(  # type: ignore[override]
        self, name: str, function: Callable[..., Result], *args: Any, on_unknown: OnUnknown = "ask", **kwargs: Any
    ) -> Result:
        """Calls a function whose effect must not happen twice, and keeps its result. See `Run.effect`."""
        result: Result = self._effect(name, function, args, on_unknown, kwargs)
        return result

    def children(self, pipeline: HasData[Of]) -> list[Child[Of]]:  # type: ignore[override]
        """Returns the children of this workflow in a pipeline. See `Run.children`."""
        found: list[Child[Of]] = self._children(pipeline)
        return found

    def answers(self) -> list[Answer]:  # type: ignore[override]
        """Returns the answers to the questions that the workflow has waited for last. See `Run.answers`."""
        found: list[Answer] = self._answers()
        return found

    def store(self, content: Content) -> Blob:  # type: ignore[override]
        """Stores up to a gigabyte beside the data, and returns the handle. See `Run.store`."""
        stored: Blob = self._store(content)
        return stored

    def load(self, blob: Blob | Mapping[str, Any]) -> bytes:  # type: ignore[override]
        """Returns a content that was stored. See `Run.load`."""
        loaded: bytes = self._worker("load").load(self._job, handle(blob))
        return loaded

    def stream(self, blob: Blob | Mapping[str, Any]) -> Iterator[bytes]:  # type: ignore[override]
        """Yields a content that was stored, in parts. See `Run.stream`."""
        streamed: Iterator[bytes] = self._worker("stream").stream(self._job, handle(blob))
        return streamed
