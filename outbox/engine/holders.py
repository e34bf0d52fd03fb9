"""Logs at intervals which session holds the rows that a commit needs. It isn't ours, so a person must end it."""

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
"""Seconds that an outcome waits for a lock, so that Postgres can tell who holds it."""

ASK_AFTER = 0.3
"""Seconds into this wait after which the holder is looked up."""

SAY_EVERY, LOOK_EVERY = 60.0, 2.0
"""Seconds until the next look after one that has logged a session, and after one that has not."""

LONG = 1.0
"""Seconds that a transaction must have been open to be named. Shorter ones are normal."""


class Holders:
    """Logs who holds up outcomes. It asks Postgres on `link`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next = 0.0

    def due(self) -> bool:
        """Returns whether it is time to look again."""
        return time.monotonic() >= self._next

    async def name(self, waiting: Link, job: Job, attempt: Awaitable[Any], held_up: int) -> None:
        """Runs an attempt that waits for a lock on the link `waiting`, and logs who holds that lock."""
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
