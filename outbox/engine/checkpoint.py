"""Stores what an attempt leaves for the next one: results of calls that should not be repeated, and its progress.

A result is written under the fence, in a transaction of its own, so it stays even if the attempt fails.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import typing
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, TypeAdapter

from .. import documents, texts
from ..database import statements
from ..database.link import Link, temporary
from ..database.statements import text_array
from ..database.steps import Call, Statement, perform, perform_async
from ..definition.run import Answer, Child
from ..errors import HandlerError, LeaseLost
from . import blobs
from .job import Job, fence

SQL = statements.load("checkpoint")
log = logging.getLogger("outbox.worker")

MAX_RESULT = 64 * 2**20
"""Most bytes of JSON in a result. It is in memory a few times over while it is written and read."""

MAX_INLINE = 64 * 2**10
"""Most characters of JSON in the checkpoint's own row. What is larger is a blob: growing results share its parts."""

MAX_CHILDREN = 10_000
"""Most children that a handler is given at once: they and their data are held in memory."""

PROGRESS_EVERY = 0.5
"""Seconds between two writes of the handlers' progress."""

T = TypeVar("T")


class ForHandlers:
    """Does what handlers ask for, in steps of which each is a statement or a call of a function of theirs.

    `_take` takes a step for a plain handler, in its thread, and `_take_async` one for an async handler.
    """

    def once(self, job: Job, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Returns the result kept under this key, or calls the function and keeps what it returns.

        Async handlers await it. For a sync handler, the function is called in the handler's thread.
        """
        return self._do(job, once(job, key, function, partial(function, *args, **kwargs)))

    def children(self, job: Job, pipeline: Any) -> Any:
        """Returns the children of a job's workflow in a pipeline. Async handlers await it."""
        return self._do(job, children(job, pipeline))

    def answers(self, job: Job, back: int | None = None) -> Any:
        """Returns the answers to the questions that a job's workflow has waited for last. Async handlers await it.

        With `back`, only those to questions of the job's own stage: with 0 of the wait directly before the job's
        status, with 1 of the wait before that.
        """
        return self._do(job, answers(job, back))

    def store(self, job: Job, content: Any) -> Any:
        """Stores a content for a job's workflow, and returns its handle. Async handlers await it."""
        return self._do(job, blobs.store(job, content))

    def load(self, job: Job, blob: Any) -> Any:
        """Returns a stored content. Async handlers await it."""
        return self._do(job, blobs.load(blob))

    def stream(self, job: Job, blob: Any) -> Any:
        """Yields a stored content part by part; for async handlers, asynchronously."""
        return blobs.stream_async(blob, self._take_async) if job.stage.is_async else blobs.stream(blob, self._take)

    def _do(self, job: Job, steps: Steps[Any]) -> Any:
        return perform_async(steps, self._take_async) if job.stage.is_async else perform(steps, self._take)

    def _take(self, step: Statement | Call) -> Any:
        raise NotImplementedError

    async def _take_async(self, step: Statement | Call) -> Any:
        raise NotImplementedError


class Checkpoints(ForHandlers):
    """Reads and writes checkpoints and progress on a connection of the worker."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._progress: dict[str, tuple[Job, str]] = {}
        self._noted = asyncio.Event()

    def note(self, job: Job, text: str) -> None:
        """Has a job's progress written soon. It may be called from any thread."""
        self._progress[job.workflow_id] = job, text
        self._loop.call_soon_threadsafe(self._noted.set)

    async def run(self) -> None:
        """Writes the jobs' progress until it is cancelled. What can't be written is dropped: newer text will come."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            noted, self._progress = self._progress, {}
            for owner in {job.owner for job, _ in noted.values()}:
                mine = [(job, text) for job, text in noted.values() if job.owner == owner]
                params = {**fence([job for job, _ in mine]), "progress": text_array(text for _, text in mine)}
                try:
                    await self._link.execute(SQL["progress_write"], params)
                except Exception as error:
                    if not temporary(error):
                        log.error("can't write progress: %s", texts.printable(error))
            await asyncio.sleep(PROGRESS_EVERY)

    async def close(self) -> None:
        await self._link.close()

    async def _take_async(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            result = step.function()
            return await result if inspect.isawaitable(result) else result
        return await self._link.repeat(*step)

    def _take(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        return asyncio.run_coroutine_threadsafe(self._link.repeat(*step), self._loop).result()


Steps = Generator[Statement | Call, Any, T]


def once(
    job: Job, key: str, function: Callable[..., Any], call: Callable[[], Any], *, inline: int = MAX_INLINE
) -> Steps[Any]:
    """Returns the steps that read the result kept under this key, or make the call and keep its result.

    A result of more than `inline` characters is kept as a blob.
    """
    results = Results(function)
    kept = yield from _find(job, key, results.name)
    if kept is None:
        text = results.write((yield Call(call)), key)
        kept = yield from _keep(job, key, results.name, text, inline)
    return results.read(kept)


def _find(job: Job, key: str, function: str) -> Steps[str | None]:
    rows = yield SQL["checkpoint_read"], _work(job, key)
    if not rows:
        return None
    ((made_by, result, blob),) = rows
    if made_by != function:
        raise HandlerError(
            f"stage {job.stage.queue}: once({key!r}) was {made_by}, and is {function} now: "
            "give another function another key"
        )
    return str(result) if blob is None else (yield from blobs.load_text(blob))


def _keep(job: Job, key: str, function: str, text: str, inline: int) -> Steps[str]:
    kept: str | None
    if len(text) > inline:
        held, made = yield from blobs.keep(job, text.encode(), key, function)
        kept = text if made else None
    else:
        params = {"job": job.id, "worker": job.owner, "attempt": job.attempt, "function": function}
        # The database has keys in an order of its own, and 1e22 without an exponent. All attempts get the same.
        ((held, kept),) = yield SQL["checkpoint_write"], {**_work(job, key), **params, "result": text}
    if not held:
        raise LeaseLost(f"{job.stage.queue} {job.entity_id}: {job.lost or 'the job was taken away'}")
    if kept is None:  # another attempt may have kept its result first
        kept = yield from _find(job, key, function)
    return text if kept is None else kept


def children(job: Job, pipeline: Any) -> Steps[list[Child[Any]]]:
    found = yield SQL["children_read"], {"id": job.workflow_id, "pipeline": pipeline.name, "limit": MAX_CHILDREN + 1}
    if len(found) > MAX_CHILDREN:
        raise HandlerError(
            f"{job.stage.queue} {job.entity_id} has more than {MAX_CHILDREN:,} children: read them by SQL"
        )
    return [Child(UUID(id_), entity, status, ended, pipeline.load(data)) for id_, entity, status, ended, data in found]


def answers(job: Job, back: int | None = None) -> Steps[list[Answer]]:
    if back is None:
        found = yield SQL["answers_read"], {"id": job.workflow_id}
    else:
        params = {"id": job.workflow_id, "entered": job.entered, "stage": job.stage.name, "back": back}
        found = yield SQL["answers_before"], params
    return [
        Answer(name, question, ended, decision, by, reason, None if about is None else documents.read(about), edited)
        for name, question, ended, decision, by, reason, about, edited in found
    ]


def _work(job: Job, key: str) -> dict[str, Any]:
    return {"id": job.workflow_id, "entered": job.entered, "stage": job.stage.name, "key": key}


def name_of(function: Callable[..., Any]) -> str:
    """Returns the name of a function, which a key belongs to."""
    function = getattr(function, "func", function)  # of a functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


class Results:
    """Writes and reads the results of a function as JSON text, of the type that its return annotation names.

    `name` is the function's, which a key belongs to. Raises HandlerError if pydantic doesn't know the type: that is
    said before the function is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = name_of(function)
        said = _type(function)
        try:
            self._adapter = None if said is None or said is Any else TypeAdapter(said)
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            raise HandlerError(
                f"{self.name} returns {texts.shown(said)}, which can't be kept: return plain JSON, a dataclass or a "
                "pydantic model, and annotate it"
            ) from error

    def write(self, result: Any, key: str, what: str = "once") -> str:
        """Returns a result as JSON text. Raises InvalidInput if it can't be kept."""
        where = f"{what}({key!r})"
        if self._adapter is None:
            return documents.dump_any(result, where, most=MAX_RESULT)
        return documents.dump(self._adapter, result, where, most=MAX_RESULT)

    def read(self, text: str) -> Any:
        """Returns a kept result. Raises pydantic's ValidationError if it doesn't fit the type."""
        return json.loads(text) if self._adapter is None else self._adapter.validate_json(text)


def _type(function: Callable[..., Any]) -> Any:
    """Returns the function's return annotation; None if there is none."""
    try:
        return typing.get_type_hints(getattr(function, "func", function)).get("return")
    except Exception:  # there are no annotations, or they can't be resolved here
        return None
