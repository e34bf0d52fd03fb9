"""Names the session that holds what a commit needs, once in a while: it is not ours, and a person must end it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from ..database.link import Link
from ..texts import number, printable
from . import commit
from .job import Job

log = logging.getLogger("outbox.worker")

WAIT = 1.0
"""Seconds that an outcome waits for a lock so that Postgres can tell who holds it."""

ASK_AFTER = 0.3
"""Seconds of this after which it is asked."""

SAY_EVERY, LOOK_EVERY = 60.0, 2.0
"""Seconds between two lines in the log, and between two looks of which the last has named no session."""

LONG = 1.0
"""Seconds for which a transaction must have been open to be named: shorter ones are no news."""


class Holders:
    """Says in the log who holds up outcomes. `link` is where the question is asked."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next = 0.0

    def due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() >= self._next

    async def name(self, waiting: Link, job: Job, attempt: Awaitable[Any], held_up: int) -> None:
        """Makes an attempt that waits for a lock on the link `waiting`, and logs meanwhile who holds it."""
        task = asyncio.ensure_future(attempt)
        try:
            await asyncio.wait([task], timeout=ASK_AFTER)
            self._next = time.monotonic() + LOOK_EVERY
            if not task.done():
                with suppress(psycopg.Error, OSError):
                    pid = waiting.pid or 0
                    self._say(job, await self._link.execute(*commit.sessions_blocking(pid)), held_up)
            await task
        finally:
            task.cancel()

    def _say(self, job: Job, sessions: Sequence[tuple[Any, ...]], held_up: int) -> None:
        for pid, name, state, seconds in sessions:
            if seconds is not None and seconds < LONG:
                continue
            since = "" if seconds is None else f", open for {seconds:.0f} s"
            log.warning(
                "%s %s: held up by the transaction of pid %s (%s, %s%s), with %s in all; "
                "commit it, or end it with pg_terminate_backend(%s)",
                job.stage.queue, printable(job.entity_id), pid, printable(name), state, since,
                number(held_up, "outcome"), pid,
            )  # fmt: skip
            self._next = time.monotonic() + SAY_EVERY
