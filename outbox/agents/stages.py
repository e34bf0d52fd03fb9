"""Makes turns of a conversation a stage: between two of them, the workflow waits for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from ..definition.outcome import Backoff
from ..definition.pipeline import Pipeline
from ..definition.routes import targets
from ..definition.run import Run
from ..definition.waits.times import check_time
from ..errors import DefinitionError, InvalidInput
from ..texts import shown
from .budget import Budget

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

    Raises DefinitionError if the stage is defined wrongly.
    """
    begins, ends = targets(on, f"stage {name}: status on="), targets(to, f"stage {name}: to=")
    _check(f"stage {name}", begins, ends, waiting, answered, stopped)
    decorate: Any = pipeline.stage(
        name, on={*begins, answered},
        to={*ends, waiting} if stopped is None else {*ends, waiting, stopped}, retry=retry, timeout=timeout, **options,
    )  # fmt: skip
    pipeline.allow(waiting, to=answered)

    def register(function: Finish) -> Finish:
        async def handle(run: Run[Any]) -> Any:
            return await turn(run, function, ends)

        decorate(handle)
        return function

    return register


def _check(
    what: str, begins: frozenset[str], ends: frozenset[str], waiting: str, answered: str, stopped: str | None
) -> None:
    if not begins or not ends:
        raise DefinitionError(f"{what}: {'to=' if begins else 'on='} is empty")
    if answered in begins:
        raise DefinitionError(f"{what}: answered={answered!r} must be a status of its own, not one of on=")
    if waiting in {*begins, answered}:
        raise DefinitionError(f"{what}: waiting={waiting!r} must be a status in which people answer, not the stage's")
    if stopped in {*begins, answered, waiting}:
        raise DefinitionError(f"{what}: {stopped!r}, where the workflow is stopped, must not lead to the stage again")


def check_given(
    what: str, *, deadline: timedelta | None, budget: Budget | None = None, **functions: Callable[..., Any] | None
) -> None:
    """Raises DefinitionError unless a stage of turns is given a time, a budget, and functions, or None of each."""
    try:
        if deadline is not None:
            check_time("deadline", deadline, timedelta(0))
    except InvalidInput as error:
        raise DefinitionError(f"{what}: {error}") from None
    if budget is not None and not isinstance(budget, Budget):
        raise DefinitionError(f"{what}: budget={shown(budget)} is not a Budget")
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise DefinitionError(f"{what}: {name}={shown(function)} is not a function")
