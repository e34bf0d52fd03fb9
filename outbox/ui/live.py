"""Tells open pages what has changed: one reader for a process, however many pages are open, and none if none is.

A page is told only the names of what has changed. It then asks for itself again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from . import facts
from .sessions import Sessions

EVERY = 1.0
"""Seconds between two looks."""

ALIVE = 15.0
"""Seconds after which a page that nothing is told is told so: proxies close a line that says nothing for a minute."""

MOST = 500
"""Open pages that a process tells."""


class Live:
    """Looks for changes while pages are open, and tells them."""

    def __init__(self, reads: Sessions) -> None:
        self._reads = reads
        self._pages: set[asyncio.Queue[list[str]]] = set()
        self._reader: asyncio.Task[None] | None = None
        self.looks = 0

    @property
    def is_full(self) -> bool:
        """Whether no more pages can be told."""
        return len(self._pages) >= MOST

    async def changes(self) -> AsyncIterator[list[str]]:
        """Yields the names of what has changed, each time that something has; an empty list if long nothing has."""
        page: asyncio.Queue[list[str]] = asyncio.Queue()
        self._pages.add(page)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._look())
        try:
            while True:
                try:
                    yield await asyncio.wait_for(page.get(), ALIVE)
                except TimeoutError:
                    yield []
        finally:
            self._pages.discard(page)
            if not self._pages and self._reader is not None:
                self._reader.cancel()
                self._reader = None

    async def _look(self) -> None:
        before: dict[str, object] | None = None
        while True:
            found = await self._reads.panel(facts.changes_seen)
            self.looks += 1
            seen = {"database": found.trouble, **(found.value or {})}
            if before is not None and (names := [name for name in seen if seen[name] != before.get(name)]):
                for page in self._pages:
                    page.put_nowait(names)
            before = {**(before or {}), **seen}
            await asyncio.sleep(EVERY)


async def events(live: Live, request: Request) -> Response:
    """Streams what has changed as server-sent events."""
    if live.is_full:
        raise HTTPException(503, "Too many pages are open: this one doesn't follow what happens.")

    async def told() -> AsyncIterator[str]:
        yield "retry: 5000\n\n"
        async for names in live.changes():
            yield f"event: changed\ndata: {','.join(names)}\n\n" if names else ": nothing\n\n"

    return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
