"""Defines a stage: the workflows that it takes, its handler, and how its attempts run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..checks import check_name, check_whole
from ..errors import DefinitionError
from ..texts import shown
from .data import DataType
from .hooks import NO_HOOKS, Hooks
from .limits import Limits
from .outcome import Backoff
from .routes import Routes

MIN_TIMEOUT, MAX_TIMEOUT = 0.001, 1e8
"""The range of an attempt's timeout, in seconds: a clock can't measure less, and three years amount to no timeout."""

_MAX_BATCH = 1_000
"""The most runs that a handler gets at once. They share one transaction, and one failure rolls back all of them."""

MAX_SHARE = 50
"""The most handlers that take turns in one transaction: Postgres shows others up to 64 savepoints of it at no cost."""


def _no_handler(*_: Any) -> Any:
    raise AssertionError("the stage has no handler yet")


@dataclass(frozen=True, slots=True)
class Stage:
    """A named handler that takes the workflows in its statuses, `on`. `Pipeline.stage` makes it.

    A stage checks its values when it is made, and raises DefinitionError if one is invalid. `timeout` is in seconds.
    `running` is its in-progress status, or None. `data`, `routes` and `hooks` belong to its pipeline.
    """

    pipeline: str
    name: str
    on: frozenset[str]
    to: frozenset[str]
    retry: Backoff
    timeout: float
    transaction: bool
    batch: int | None
    running: str | None
    data: DataType = field(repr=False)
    routes: Routes = field(repr=False)
    limits: Limits | None = None
    share: int | None = None
    hooks: Hooks = field(repr=False, default=NO_HOOKS)
    handler: Callable[..., Any] = field(default=_no_handler, repr=False)
    is_async: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        what = f"stage {check_name(self.name, 'stage')}"
        if not self.on:
            raise DefinitionError(f"{what}: on= is empty; a stage takes the workflows of at least one status")
        if not self.to:
            raise DefinitionError(f"{what}: to= is empty; a stage moves its workflow to another status")
        for status in self.on:
            if status in self.to and (len(self.on) == 1 or len(self.to) == 1):
                raise DefinitionError(f"{what}: from {status} to itself is not a change; raise Retry to try again")
        if self.running is not None and check_name(self.running, f"{what}: running=") in self.on | self.to:
            raise DefinitionError(f"{what}: running={self.running!r} must be a status of its own")
        if not isinstance(self.retry, Backoff):
            raise DefinitionError(f"{what}: retry={shown(self.retry)} is not a Backoff")
        if not isinstance(self.transaction, bool):
            raise DefinitionError(f"{what}: transaction={shown(self.transaction)} is neither True nor False")
        if self.batch is not None:
            check_whole(self.batch, f"{what}: batch=", _MAX_BATCH)
            if not self.transaction:
                raise DefinitionError(f"{what}: batch={self.batch} is for stages with transaction=True")
        if self.share is not None:
            check_whole(self.share, f"{what}: share=", MAX_SHARE)
            if not self.transaction or self.batch is not None:
                raise DefinitionError(
                    f"{what}: share={self.share} is for stages with transaction=True and without batch="
                )
        if not callable(self.handler) or _yields(self.handler):
            raise DefinitionError(f"{what}: the handler must be a function that takes a Run and returns")
        object.__setattr__(self, "is_async", _is_async(self.handler))

    def handled_by(self, handler: Callable[..., Any]) -> Stage:
        """Returns this stage with its handler. Raises DefinitionError if that is not callable or is a generator."""
        return replace(self, handler=handler)

    @property
    def changes(self) -> set[tuple[str, str]]:
        """The changes that the stage makes, as (from, to)."""
        made = {(source, target) for source in self.on for target in self.to if source != target}
        if self.running is None:
            return made
        begun = {(source, self.running) for source in self.on}
        return made | begun | {(self.running, target) for target in self.to}

    @property
    def queue(self) -> str:
        """The stage's name in a worker's row: `posts.enrich`."""
        return f"{self.pipeline}.{self.name}"


def _yields(handler: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)


def _is_async(handler: Callable[..., Any]) -> bool:
    # A handler may be an object whose `__call__` is async.
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004
