"""Keeps in memory what an attempt leaves for the next one: results of `run.once`, effects, and its progress."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from ..database.steps import Call, Statement, perform, perform_async
from ..definition.effect import Ask, Done, Effects, Known, NotDone, OnUnknown
from ..engine import blobs, checkpoint, effects
from ..engine.job import Job
from ..errors import HandlerError, InvalidInput
from ..texts import shown


class Memory:
    """Stands for the tables in which a worker keeps results, effects and progress.

    `given` are results of earlier attempts, and `known` says what has become of their effects.
    """

    def __init__(self, given: Mapping[str, Any] | None = None, known: Mapping[str, Known] | None = None) -> None:
        self._given = dict(given or {})
        self.effects = _checked(known or {})
        self._kept: dict[str, tuple[checkpoint.Results, str]] = {}
        self._parts: dict[bytes, bytes] = {}
        self._blobs: dict[str, tuple[int, list[bytes]]] = {}
        self.progress: str | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """The results by their keys, as the next attempt would get them."""
        return {**self._given, **{key: results.read(text) for key, (results, text) in self._kept.items()}}

    def once(self, job: Job, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Does what `Checkpoints.once` does."""
        results = checkpoint.Results(function)
        if key in self._given and key not in self._kept:
            self._kept[key] = results, results.write(self._given[key], key)
        call = partial(function, *args, **kwargs)
        steps = checkpoint.once(job, key, function, call, inline=checkpoint.MAX_RESULT)
        take = partial(self._take, key, results)
        return perform_async(steps, _awaiting(take)) if job.stage.is_async else perform(steps, take)

    def store(self, job: Job, content: Any) -> Any:
        """Does what `Checkpoints.store` does."""
        steps = blobs.store(job, content)
        return (
            perform_async(steps, _awaiting(self._take_part)) if job.stage.is_async else perform(steps, self._take_part)
        )

    def load(self, job: Job, blob: Any) -> Any:
        """Does what `Checkpoints.load` does."""
        steps = blobs.load(blob)
        return (
            perform_async(steps, _awaiting(self._take_part)) if job.stage.is_async else perform(steps, self._take_part)
        )

    def stream(self, job: Job, blob: Any) -> Any:
        """Does what `Checkpoints.stream` does."""
        if job.stage.is_async:
            return blobs.stream_async(blob, _awaiting(self._take_part))
        return blobs.stream(blob, self._take_part)

    def effect(
        self, job: Job, found: Effects, name: str, function: Callable[..., Any], args: Any, kwargs: Any,
        on_unknown: OnUnknown,
    ) -> Any:  # fmt: skip
        """Does what `Ledger.effect` does."""
        call = partial(function, *args, **kwargs)
        steps = effects.effect(job, found, name, function, call, on_unknown, inline=checkpoint.MAX_RESULT)
        take = partial(self._take_effect, name, function)
        if job.stage.is_async:
            return found.under_way.among_others(perform_async(steps, _awaiting(take)))
        return perform(steps, take)

    def trusted(self) -> bool:
        """Returns True: there is no lease that could end."""
        return True

    def children(self, job: Job, pipeline: Any) -> Any:
        """Raises HandlerError: there is no database with children."""
        raise HandlerError("run.children needs a database: test this handler with outbox.testing.drain")

    def answers(self, job: Job, back: int | None = None) -> Any:
        """Raises HandlerError: there is no database with questions."""
        raise HandlerError("run.answers needs a database: test this handler with outbox.testing.drain")

    def note(self, job: Job, text: str) -> None:
        """Keeps the last text."""
        self.progress = text

    def _take_effect(self, name: str, function: Callable[..., Any], step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        statement, params = step
        if statement == effects.SQL["effect_note"]:
            if params["state"] == "done":
                self.effects[name] = Done(checkpoint.Results(function).read(params["result"]))
            else:
                self.effects[name] = NotDone() if params["state"] == "not done" else Ask()
            return [(True, params["result"])]
        if statement == effects.SQL["effect_told"]:
            return [(False,)]
        match self.effects.get(name):
            case Done(result):
                text = checkpoint.Results(function).write(result, name, "effect")
                return [(True, False, params["call"], "done", params["function"], text, None, None)]
            case Ask() if not params["repeat"]:
                return [(True, False, params["call"], "started", params["function"], None, None, None)]
        self.effects[name] = Ask()
        return [(True, True, params["call"], "started", params["function"], None, None, None)]

    def _take(self, key: str, results: checkpoint.Results, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        statement, params = step
        if statement == checkpoint.SQL["checkpoint_read"]:
            if key not in self._kept:
                return []
            kept_by, text = self._kept[key]
            return [(kept_by.name, text, None)]
        made = key not in self._kept
        self._kept.setdefault(key, (results, params["result"]))
        return [(True, params["result"] if made else None)]

    def _take_part(self, step: Statement | Call) -> Any:
        """Stands for the tables of blobs: `_parts` has contents of parts by their hashes, `_blobs` sizes and parts."""
        if isinstance(step, Call):
            return step.function()
        statement, params = step
        if statement == blobs.SQL["parts_keep"]:
            return [(part.hex(),) for part in params["parts"] if part in self._parts]
        if statement == blobs.SQL["parts_write"]:
            self._parts.update({sha256(content).digest(): content for content in params["contents"]})
            return []
        if statement == blobs.SQL["blob_write"]:
            self._blobs[params["blob"]] = params["size"], params["parts"]
            return [(True, True, False)]
        if statement == blobs.SQL["blob_parts"]:
            return [self._blobs[params["blob"]]] if params["blob"] in self._blobs else []
        return [(self._parts[part],) for part in params["parts"]]


def _checked(known: Mapping[str, Known]) -> dict[str, Known]:
    for name, each in known.items():
        if not isinstance(each, Done | NotDone | Ask):
            raise InvalidInput("effects", f"{name}: must be Done(result), NotDone() or Ask(), not {shown(each)}")
    return dict(known)


def _awaiting(take: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    async def take_async(step: Statement | Call) -> Any:
        result = take(step)
        return await result if inspect.isawaitable(result) else result

    return take_async
