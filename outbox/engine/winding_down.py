"""Ends the work of a worker: what has not started goes back, what runs has the grace time, and the rest is released."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ..errors import WorkerBroken
from ..process.service import Service
from .attempt import Attempts
from .inflight import InFlight
from .release import Releaser

log = logging.getLogger("outbox.worker")

RELEASE_WITHIN = 10.0
"""Seconds in which a worker that stops tries to release what it has not finished: else its lease's end does it."""

CANCEL_WITHIN = 1.0
"""Seconds that handlers may take to end after they were cancelled: then their jobs are released."""

COMMIT_WITHIN = 1.0
"""Seconds that the last outcomes may take to be committed after the grace time."""


class WindingDown:
    """The end of a worker's run."""

    def __init__(
        self, service: Service, inflight: InFlight, attempts: Attempts, releaser: Releaser, *, grace: float
    ) -> None:
        self._service, self._inflight, self._attempts, self._releaser = service, inflight, attempts, releaser
        self._grace = grace
        self.interrupted = 0
        """How many handlers were still running at the end of the grace time."""

    async def after(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits the work until it has ended or the worker is told to stop, and winds down. Raises WorkerBroken."""
        try:
            await self._service.until_stop(work)
        except WorkerBroken as error:
            log.error("%s", error)
            await self._run(within=self._grace)
            raise
        await self._run()

    async def _run(self, within: float | None = None) -> None:
        """Ends what is at work within the grace time after a stop, or `within` so many seconds."""
        self._attempts.stop_starting()
        if waiting := self._inflight.drop_waiting():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._releaser.release(waiting, started=False), RELEASE_WITHIN)
            log.info("released %s jobs that had not started", len(waiting))
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._service.until_stop(self._inflight.quiet(), grace=self._grace)
        if interrupted := self._inflight.interrupt("the worker has stopped"):
            self.interrupted = len(interrupted)
            log.warning("interrupted %s handlers that were still running; their jobs run again", len(interrupted))
            await self._attempts.handlers.ended(CANCEL_WITHIN)
            with suppress(Exception):
                await asyncio.wait_for(self._releaser.release(interrupted), RELEASE_WITHIN)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._inflight.quiet(), COMMIT_WITHIN)
        if held_up := self._inflight.drop_held_up():
            log.warning("%s outcomes wait for rows that other sessions hold; their jobs run again", len(held_up))
            with suppress(Exception):
                await asyncio.wait_for(self._releaser.release(held_up), RELEASE_WITHIN)

    async def release_all(self) -> None:
        """Cancels what runs and releases what is held; there is none unless the run has failed or was cancelled."""
        self._attempts.stop_starting()
        inflight = self._inflight
        held = [*inflight.drop_waiting(), *inflight.interrupt("the worker has ended"), *inflight.drop_held_up()]
        await self._attempts.handlers.ended(CANCEL_WITHIN)
        if held:
            await self._releaser.release(held)
            log.warning("released %s jobs, as the worker has ended; they run again", len(held))
