"""Keeps in memory what an attempt leaves for the next one: the results of `run.once`, and its progress."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..database.steps import Call, Statement, perform, perform_async
from ..engine import checkpoint
from ..engine.job import Job
from ..errors import HandlerError


class Memory:
    """Stands for the tables in which a worker keeps results and progress. `given` are results of earlier attempts."""

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self._given = dict(given or {})
        self._kept: dict[str, tuple[Callable[..., Any], str]] = {}
        self.progress: str | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """The results by their keys, as the next attempt would get them."""
        return {**self._given, **{key: checkpoint.read(function, text) for key, (function, text) in self._kept.items()}}

    def once(self, job: Job, key: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Does what `Checkpoints.once` does."""
        if key in self._given and key not in self._kept:
            self._kept[key] = function, checkpoint.written(function, key, self._given[key])
        steps = checkpoint.once(job, key, function, partial(function, *args, **kwargs))
        take = partial(self._take, key, function)
        if not job.stage.is_async:
            return perform(steps, take)

        async def take_async(step: Statement | Call) -> Any:
            result = take(step)
            return await result if inspect.isawaitable(result) else result

        return perform_async(steps, take_async)

    def children(self, job: Job, pipeline: Any) -> Any:
        """Raises HandlerError: there is no database with children."""
        raise HandlerError("run.children needs a database: test this handler with outbox.testing.drain")

    def note(self, job: Job, text: str) -> None:
        """Keeps the last text."""
        self.progress = text

    def _take(self, key: str, function: Callable[..., Any], step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        statement, params = step
        if statement == checkpoint.SQL["checkpoint_read"]:
            if key not in self._kept:
                return []
            kept_by, text = self._kept[key]
            return [(checkpoint.name_of(kept_by), text)]
        made = key not in self._kept
        self._kept.setdefault(key, (function, params["result"]))
        return [(True, made)]
