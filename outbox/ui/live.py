"""Tells open pages what has changed: one reader for a process, however many pages are open, and none if none is.

A page is told only the names of what has changed. It then asks for itself again, if it shows any of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..operations.sessions import Conn, Sessions
from . import facts
from .shared import Shared

EVERY = 1.0
"""Seconds between two looks."""

BUSY = 8.0
"""Seconds to the next look after a change: where something changes all the time, pages cost little."""

ALIVE = 15.0
"""Seconds after which a page that nothing is told is told so: proxies close a line that says nothing for a minute."""

MOST = 500
"""Open pages that a process tells."""


@dataclass(eq=False, slots=True)
class _Page:
    """An open page. `workflow` is the id of the only workflow that it shows, or None."""

    workflow: str | None
    told: asyncio.Queue[list[str]]
    is_new: bool = True


class Live:
    """Looks for changes while pages are open, and tells them. What they ask then is `shared`."""

    def __init__(self, reads: Sessions, shared: Shared[Any] | None = None) -> None:
        self._reads = reads
        self._shared = shared
        self._pages: set[_Page] = set()
        self._reader: asyncio.Task[None] | None = None
        self.looks = 0

    @property
    def is_full(self) -> bool:
        """Whether no more pages can be told."""
        return len(self._pages) >= MOST

    async def changes(self, workflow: str | None = None) -> AsyncIterator[list[str]]:
        """Yields the names of what has changed, each time that something has; an empty list if long nothing has.

        The first one is "opened": what has changed since the page was made is not known. With the id of a `workflow`,
        it yields "workflow" when something of this one has changed.
        """
        page = _Page(workflow, asyncio.Queue())
        self._pages.add(page)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._look())
        try:
            while True:
                try:
                    yield await asyncio.wait_for(page.told.get(), ALIVE)
                except TimeoutError:
                    yield []
        finally:
            self._pages.discard(page)
            if not self._pages and self._reader is not None:
                self._reader.cancel()
                self._reader = None

    async def _look(self) -> None:
        marks: dict[str, object] = {}
        trouble: str | None = None
        while True:
            pages = list(self._pages)
            ids = {page.workflow for page in pages if page.workflow is not None}

            def find(conn: Conn, ids: set[str] = ids) -> dict[str, object]:
                # Those that are gone have no mark, which is another than the one that they had.
                return {**dict.fromkeys(ids), **facts.changes_seen(conn), **facts.workflows_seen(conn, ids)}

            found = await self._reads.panel(find)
            self.looks += 1
            seen = marks if found.value is None else found.value
            changed = {name for name in seen if name in marks and seen[name] != marks[name]}
            if found.trouble != trouble:
                changed.add("database")
            marks, trouble = seen, found.trouble
            if changed and self._shared is not None:
                self._shared.forget()
            for page in pages:
                names = _names(page, changed, ids)
                if page.is_new:
                    names, page.is_new = ["opened"], False
                if names:
                    page.told.put_nowait(names)
            await asyncio.sleep(BUSY if changed else EVERY)


def _names(page: _Page, changed: set[str], ids: set[str]) -> list[str]:
    """Returns what of all that has changed concerns a page: all but other workflows, or the only one that it shows."""
    if page.workflow is None:
        return sorted(changed - ids)
    return [told for name, told in ((page.workflow, "workflow"), ("database", "database")) if name in changed]


async def events(live: Live, request: Request) -> Response:
    """Streams what has changed as server-sent events."""
    if live.is_full:
        raise HTTPException(503, "Too many pages are open: this one doesn't follow what happens.")
    asked = request.query_params.get("workflow")
    try:
        workflow = None if asked is None else str(UUID(asked))
    except ValueError:
        raise HTTPException(400, "This is not the id of a workflow.") from None

    async def told() -> AsyncIterator[str]:
        yield "retry: 5000\n\n"
        async for names in live.changes(workflow):
            yield f"event: changed\ndata: {','.join(names)}\n\n" if names else ": nothing\n\n"

    return StreamingResponse(told(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
