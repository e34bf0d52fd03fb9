"""What a handler must take and may return: for type checkers, and checked when it is defined."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from ..errors import DefinitionError
from .run import Run, SyncRun
from .waits.wait import Wait

Data = TypeVar("Data")
In = TypeVar("In")
SyncIn = TypeVar("SyncIn")
Result = TypeVar("Result")

Outcome: TypeAlias = Data | Mapping[str, Any] | Wait[Data] | None
"""What a handler may return."""


class StageDecorator(Protocol[Data]):
    """Takes the handler of a stage, which takes a `Run`, or as a plain function also a `SyncRun`.

    What a handler returns is checked here, and is Any to who calls it by itself, as in a test.
    """

    # Not one overload for each kind of result: of several that fit, mypy makes an untyped function.
    @overload
    def __call__(
        self, handler: Callable[[Run[Data]], Coroutine[Any, Any, Outcome[Data]]], /
    ) -> Callable[[Run[Data]], Coroutine[Any, Any, Any]]: ...
    @overload
    def __call__(self, handler: Callable[[SyncRun[Data]], Outcome[Data]], /) -> Callable[[SyncRun[Data]], Any]: ...


class BatchDecorator(Protocol[Data]):
    """Takes the handler of a stage with `batch=`, which gets a list of runs."""

    @overload
    def __call__(
        self, handler: Callable[[list[Run[Data]]], Coroutine[Any, Any, Sequence[Outcome[Data]] | None]], /
    ) -> Callable[[list[Run[Data]]], Coroutine[Any, Any, Sequence[Outcome[Data]] | None]]: ...
    @overload
    def __call__(
        self, handler: Callable[[list[SyncRun[Data]]], Sequence[Outcome[Data]] | None], /
    ) -> Callable[[list[SyncRun[Data]]], Sequence[Outcome[Data]] | None]: ...
    @overload
    def __call__(
        self, handler: Callable[[list[Run[Data]]], Sequence[Outcome[Data]] | None], /
    ) -> Callable[[list[Run[Data]]], Sequence[Outcome[Data]] | None]: ...


class FunctionDecorator(Protocol[In, SyncIn]):
    """Takes a function of a schedule or of a reaction, async or plain. What it returns is not used."""

    @overload
    def __call__(
        self, function: Callable[[In], Coroutine[Any, Any, Result]], /
    ) -> Callable[[In], Coroutine[Any, Any, Result]]: ...
    @overload
    def __call__(self, function: Callable[[SyncIn], Result], /) -> Callable[[SyncIn], Result]: ...


def require_takes(function: Callable[..., Any], what: str, takes: str) -> None:
    """Raises DefinitionError, which begins with `what` and names the function, unless it can be called with one value.

    `takes` says which: "a Run".
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a function of C may not say what it takes
    try:
        signature.bind(None)
    except TypeError:
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        raise DefinitionError(f"{what}: {name}{_shown(signature)} must take {takes}, and nothing else") from None


def require_runs(function: Callable[..., Any], what: str, *, batch: bool) -> None:
    """Raises DefinitionError unless a handler takes one run, or with `batch` a list of runs."""
    takes = "a list of Runs, because of batch=" if batch else "a Run"
    require_takes(function, what, takes)
    given = _given(function)
    of = typing.get_origin(given) or given
    if not isinstance(of, type):
        return
    if issubclass(of, Run) if batch else issubclass(of, Sequence):
        raise DefinitionError(f"{what}: {getattr(function, '__qualname__', function)} must take {takes}")


def _given(function: Callable[..., Any]) -> Any:
    """Returns the annotation of the first parameter, or None if it can't be told here."""
    try:
        first = next(iter(inspect.signature(function).parameters))
        return typing.get_type_hints(function).get(first)
    except Exception:  # names that are defined later, or only for type checkers
        return None


def _shown(signature: inspect.Signature) -> str:
    return f"({', '.join(str(each.replace(annotation=each.empty)) for each in signature.parameters.values())})"
