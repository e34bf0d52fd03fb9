"""Calls handlers as a worker does: within the timeout of their stage, with what their lifespans make open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..definition.run import Run
from ..engine.handle import handle_async
from ..engine.job import Outcome, fail
from ..process.service import Service
from .sequence import Sequence


@contextmanager
def lifespans_open(sequence: Sequence, in_loop: Callable[[Coroutine[Any, Any, Any]], Any]) -> Iterator[None]:
    """Has open what the pipelines' lifespans make."""
    if not any(pipeline.hooks.lifespan for pipeline in sequence.pipelines):
        yield
        return
    in_loop(sequence.lifespans.open(Service("Drain")))
    try:
        yield
    finally:
        in_loop(sequence.lifespans.close(None, None, None))


async def handled_within(run: Run[Any]) -> Outcome:
    """Calls an async handler; returns its outcome, which is a failure after its stage's timeout."""
    try:
        return (await within(run._job.stage.timeout, partial(handle_async, [run])))[0]  # type: ignore[no-any-return]
    except TimeoutError as error:
        return fail(run._job, error)


async def within(timeout: float, function: Callable[[], Awaitable[Any]]) -> Any:
    """Calls an async function. Raises TimeoutError after `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await function()
    except TimeoutError:
        raise TimeoutError(f"no outcome within its timeout of {timeout:g} s") from None
