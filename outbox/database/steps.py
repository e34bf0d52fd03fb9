"""Runs a generator of steps, sync or async, so that code with both forms is written once.

The generator yields steps, such as statements and calls of a user's function. It is sent each step's answer, and an
error of a step is raised at its `yield`, so it reads like a plain function. The two loops below differ only by `await`.
The caller decides how a step is taken: see user_transaction, client/execute and engine/checkpoint.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple, TypeVar

S = TypeVar("S")
T = TypeVar("T")

Statement = tuple[bytes, dict[str, Any]]
"""A step whose answer is the statement's rows."""


class Call(NamedTuple):
    """A step that calls a user's function. Its answer is what the function returns.

    An async function that takes longer than `timeout` seconds is cancelled. A sync one can't be.
    """

    function: Callable[[], Any]
    timeout: float | None = None


def perform(steps: Generator[S, Any, T], take: Callable[[S], Any]) -> T:
    """Takes each step in the calling thread; returns what the generator returns."""
    try:
        step = next(steps)
        while True:
            try:
                answer = take(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


async def perform_async(steps: Generator[S, Any, T], take: Callable[[S], Awaitable[Any]]) -> T:
    """Takes each step in the event loop; returns what the generator returns."""
    try:
        step = next(steps)
        while True:
            try:
                answer = await take(step)
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
