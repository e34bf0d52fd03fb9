"""Makes turns of a conversation a stage: between two of them, the workflow waits for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from ..definition.outcome import Backoff
from ..definition.pipeline import Pipeline
from ..definition.routes import targets
from ..definition.run import Run

Finish = TypeVar("Finish", bound=Callable[..., Any])
Turn = Callable[[Run[Any], Any, frozenset[str]], Awaitable[Any]]
"""Makes a turn of a run. It is given the function that finishes, and the statuses to which that may lead."""


def stage_of_turns(
    pipeline: Pipeline[Any], name: str, turn: Turn, *, on: str | Iterable[str], to: str | Iterable[str], waiting: str,
    answered: str, stopped: str | None, retry: Backoff | None, timeout: float | timedelta, options: dict[str, Any],
) -> Callable[[Finish], Finish]:  # fmt: skip
    """Defines a stage of turns, and returns the decorator of the function that finishes.

    The stage takes the statuses `on`, and `answered`, to which the answers in `waiting` lead. A turn leads to one of
    `to`, to `waiting`, or to `stopped` if there is such a status.
    """
    ends = targets(to, f"stage {name}: to=")
    decorate: Any = pipeline.stage(
        name, on={*targets(on, f"stage {name}: status on="), answered},
        to={*ends, waiting} if stopped is None else {*ends, waiting, stopped}, retry=retry, timeout=timeout, **options,
    )  # fmt: skip
    pipeline.allow(waiting, to=answered)

    def register(function: Finish) -> Finish:
        async def handle(run: Run[Any]) -> Any:
            return await turn(run, function, ends)

        decorate(handle)
        return function

    return register
