"""Defines what an application runs around its handlers, and calls handlers with it.

`lifespan` makes what handlers need, once in each process. `around` surrounds each attempt. `on_error` is told of each
attempt that has failed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

from ..errors import DefinitionError, HandlerError
from ..process.forks import leave_if_forked
from ..texts import shown
from .failed_attempts import OnError
from .lifespan import Lifespan, Lifespans, Made

Around = Callable[[Any], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
"""Is given what the handler is given, and returns a context manager for this attempt."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a pipeline, a worker or a consumer runs around its handlers."""

    around: tuple[Around, ...] = ()
    lifespan: Lifespan | None = None
    on_error: tuple[OnError, ...] = ()

    def within(self, own: Hooks) -> Hooks:
        """Returns these hooks of a pipeline inside of a worker's `own`, whose lifespan takes the place of this one."""
        return Hooks(own.around + self.around, own.lifespan or self.lifespan, own.on_error + self.on_error)


NO_HOOKS = Hooks()

EVERYWHERE: list[Around] = []
"""What a framework runs around each handler of this process, outside of all else: see outbox/django/apps.py."""


def check(
    what: str, around: Around | Iterable[Around] = (), lifespan: Lifespan | None = None, on_error: OnError | None = None
) -> Hooks:
    """Returns checked hooks. Raises DefinitionError, which begins with `what`, for one that can't be called."""
    several = around if isinstance(around, Iterable) and not callable(around) else (around,)
    return Hooks(
        tuple(_callable(each, f"{what}around") for each in several),
        None if lifespan is None else _callable(lifespan, f"{what}lifespan"),
        () if on_error is None else (_callable(on_error, f"{what}on_error"),),
    )


def surround(
    handler: Callable[..., Any], *, is_async: bool, hooks: Hooks, lifespans: Lifespans, name: str
) -> Callable[..., Any]:
    """Returns the handler `name` as a process calls it: each attempt in its context managers, the first one outermost.

    Their errors are the handler's. Of a handler that is given a list of runs, each run has context managers of its own.
    What the lifespan has made is there in all of them. Without hooks, returns the handler itself. Raises
    DefinitionError for an async context manager around a plain handler.
    """
    for each in reversed((*EVERYWHERE, *hooks.around)):
        if not is_async and inspect.isasyncgenfunction(inspect.unwrap(each)):
            raise DefinitionError(
                f"around: {_name(each)} is an async context manager, and {name} is a plain function: "
                "give a plain one, which serves both"
            )
        handler = _async(handler, each) if is_async else _plain(handler, each)
    if hooks.lifespan is None:
        return handler
    made = lifespans.made(hooks.lifespan)
    return _giving_async(handler, made) if is_async else _giving(handler, made)


def _giving(handler: Callable[..., Any], made: Made) -> Callable[..., Any]:
    def call(given: Any) -> Any:
        give(given, made.value)
        return handler(given)

    return call


def _giving_async(handler: Callable[..., Any], made: Made) -> Callable[..., Any]:
    async def call(given: Any) -> Any:
        give(given, made.value)
        return await handler(given)

    return call


def give(given: Any, resources: Any) -> None:
    """Makes `resources` those of a run, of each run of a list, of a tick or of a delivery."""
    for each in given if isinstance(given, list) else (given,):
        object.__setattr__(each, "_resources", resources)  # a tick is frozen


def _plain(handler: Callable[..., Any], around: Around) -> Callable[..., Any]:
    def call(given: Any) -> Any:
        with ExitStack() as stack:
            for run in given if isinstance(given, list) else (given,):
                manager: Any = around(run)
                if not hasattr(type(manager), "__enter__"):
                    raise HandlerError(f"around: {_name(around)} must return a context manager for a plain function")
                stack.enter_context(manager)
            try:
                return handler(given)
            finally:
                leave_if_forked()  # what was entered in the parent is not the child's to leave
        raise _swallowed(around)

    return call


def _async(handler: Callable[..., Any], around: Around) -> Callable[..., Any]:
    async def call(given: Any) -> Any:
        async with AsyncExitStack() as stack:
            for run in given if isinstance(given, list) else (given,):
                manager: Any = around(run)
                if hasattr(type(manager), "__aenter__"):
                    await stack.enter_async_context(manager)
                elif hasattr(type(manager), "__enter__"):
                    stack.enter_context(manager)
                else:
                    raise HandlerError(f"around: {_name(around)} must return a context manager")
            try:
                return await handler(given)
            finally:
                leave_if_forked()
        raise _swallowed(around)

    return call


def _swallowed(around: Around) -> HandlerError:
    return HandlerError(f"around: {_name(around)} has swallowed the handler's error; let it pass, or raise another one")


def _callable(hook: Any, what: str) -> Any:
    if not callable(hook):
        raise DefinitionError(f"{what}={shown(hook)} is not a function")
    return hook


def _name(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))
