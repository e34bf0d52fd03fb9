"""Opens what an application's handlers need, once in each process, and closes it after the last handler."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from types import TracebackType
from typing import Any

from ..errors import DefinitionError, HandlerError
from ..process.service import Service, cancel
from ..texts import printable
from .reasons import describe

log = logging.getLogger("outbox.service")

Lifespan = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
"""Returns a context manager, whose value is `run.resources`."""

CLOSE_WITHIN = 10.0
"""Seconds that closing may take: a client that waits for its server must not keep a process from ending."""

NO_RESOURCES = "there are no resources: give the pipeline, the worker or the consumer a lifespan="


class Made:
    """Holds what a lifespan has made, while it is open."""

    value: Any = None


class HasResources:
    """Has the `resources` of what a user's function is given."""

    __slots__ = ("_resources",)
    _resources: Any

    @property
    def resources(self) -> Any:
        """What the lifespan has made. Raises HandlerError if there is none."""
        try:
            return self._resources
        except AttributeError:
            raise HandlerError(NO_RESOURCES) from None


class Lifespans:
    """The lifespans of one worker or consumer, each of which is open once, however many pipelines have it."""

    def __init__(self) -> None:
        self._made: dict[Lifespan, Made] = {}
        self._stack = AsyncExitStack()

    def made(self, lifespan: Lifespan) -> Made:
        """Returns where its value will be."""
        return self._made.setdefault(lifespan, Made())

    async def open(self, service: Service) -> None:
        """Opens all of them, in the calling task; a stop ends that. What one raises is raised."""
        self._stack = stack = AsyncExitStack()
        if not self._made:
            return
        limit = asyncio.timeout(None)

        async def end_at_a_stop() -> None:
            await service.stopped()
            limit.reschedule(asyncio.get_running_loop().time())

        stopping = asyncio.create_task(end_at_a_stop())
        try:
            async with limit:
                for lifespan, made in self._made.items():
                    made.value = await _enter(stack, lifespan)
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            await cancel(stopping)

    async def close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes them in the reverse order, in the task that has opened them. What one raises is raised.

        If the run has failed with `error`, that is raised instead, and what one raises is only logged.
        """
        try:
            async with asyncio.timeout(CLOSE_WITHIN) as limit:
                await self._stack.aclose()
        except Exception as raised:
            if isinstance(raised, TimeoutError) and limit.expired():
                log.error("a lifespan was not closed within %g s", CLOSE_WITHIN)
            elif error is None:
                raise
            else:
                log.error("a lifespan has failed as it closed: %s", printable(describe(raised)))
        finally:
            for made in self._made.values():
                made.value = None


async def _enter(stack: AsyncExitStack, lifespan: Lifespan) -> Any:
    manager: Any = lifespan()
    if hasattr(type(manager), "__aenter__"):
        return await stack.enter_async_context(manager)
    if hasattr(type(manager), "__enter__"):
        return stack.enter_context(manager)
    name = getattr(lifespan, "__qualname__", type(lifespan).__qualname__)
    raise DefinitionError(f"lifespan: {name} must return a context manager; decorate it with @asynccontextmanager")
