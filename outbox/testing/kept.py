"""Keeps results of `run.once` and effects as a worker does, but in the transaction that a drain works in."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ..database.steps import Call, Statement, perform, perform_async
from ..definition.effect import Effects, OnUnknown
from ..engine import blobs, checkpoint, effects
from ..engine.job import Job

_KEPT = {checkpoint.SQL["checkpoint_write"], effects.SQL["effect_intend"], effects.SQL["effect_note"], *blobs.WRITES}
"""What a worker writes in transactions of its own, and what stays when the attempt is rolled back."""


class Kept(checkpoint.ForHandlers):
    """Stands for the checkpoints and the ledger of a worker.

    `rows` runs a statement in the thread of a plain handler, `rows_async` in the event loop of an async one.
    """

    def __init__(
        self, rows: Callable[[Statement], list[Any]], rows_async: Callable[[Statement], Awaitable[list[Any]]]
    ) -> None:
        self._rows, self._rows_async = rows, rows_async
        self._written: list[Statement] = []

    def effect(
        self, job: Job, found: Effects, name: str, function: Callable[..., Any], args: Any, kwargs: Any,
        on_unknown: OnUnknown,
    ) -> Any:  # fmt: skip
        """Does what `Ledger.effect` does."""
        steps = effects.effect(job, found, name, function, partial(function, *args, **kwargs), on_unknown)
        if job.stage.is_async:
            return found.under_way.among_others(perform_async(steps, self._take_async))
        return perform(steps, self._take)

    def trusted(self) -> bool:
        """Returns True: there is no lease that could end."""
        return True

    def note(self, job: Job, text: str) -> None:
        """Does nothing: progress is for others, who don't see this transaction."""

    def take_written(self) -> list[Statement]:
        """Returns the statements that have kept something since the last call: a rollback may have undone them."""
        written, self._written = self._written, []
        return written

    def _take(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            return step.function()
        self._note(step)
        return self._rows(step)

    async def _take_async(self, step: Statement | Call) -> Any:
        if isinstance(step, Call):
            result = step.function()
            return await result if inspect.isawaitable(result) else result
        self._note(step)
        return await self._rows_async(step)

    def _note(self, step: Statement) -> None:
        if step[0] in _KEPT:
            self._written.append(step)
