"""Ends a worker's run: releases waiting jobs, gives running ones the grace time, then releases the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ..errors import WorkerBroken
from ..process.service import Service
from .attempt import Attempts
from .inflight import QUIET_POLL, InFlight
from .release import Releaser

log = logging.getLogger("outbox.worker")

RELEASE_WITHIN = 10.0
"""Seconds in which a stopping worker tries to release unfinished jobs. After that, the end of its lease frees them."""

CANCEL_WITHIN = 1.0
"""Seconds that cancelled handlers may take to end before their jobs are released."""

COMMIT_WITHIN = 1.0
"""Seconds that the last outcomes may take to commit after the grace time."""


class WindingDown:
    """Runs the end of a worker's run."""

    def __init__(
        self, service: Service, inflight: InFlight, attempts: Attempts, releaser: Releaser, *, grace: float
    ) -> None:
        self._service, self._inflight, self._attempts, self._releaser = service, inflight, attempts, releaser
        self._grace = grace
        self.interrupted = 0
        """How many handlers were still running at the end of the grace time."""

    async def after(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits the work until it ends or the worker is told to stop, and winds down. Raises WorkerBroken."""
        try:
            await self._service.until_stop(work)
        except WorkerBroken as error:
            log.error("%s", error)
            await self._run(within=self._grace)
            raise
        await self._run()

    async def _run(self, within: float | None = None) -> None:
        """Ends the running jobs within the grace time after a stop, or within `within` seconds."""
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
        with suppress(Exception):
            await asyncio.wait_for(self._release_held_up(), RELEASE_WITHIN)

    async def _release_held_up(self) -> None:
        """Releases outcomes that wait for rows of other sessions. Those that are being tried come back first."""
        while self._inflight.held_up:
            if held_up := self._inflight.drop_held_up():
                log.warning("%s outcomes wait for rows that other sessions hold; their jobs run again", len(held_up))
                await self._releaser.release(held_up)
            else:
                await asyncio.sleep(QUIET_POLL)

    async def release_all(self) -> None:
        """Cancels what runs and releases what is held. That is nothing unless the run has failed or was cancelled."""
        self._attempts.stop_starting()
        inflight = self._inflight
        held = [*inflight.drop_waiting(), *inflight.interrupt("the worker has ended"), *inflight.drop_held_up()]
        await self._attempts.handlers.ended(CANCEL_WITHIN)
        if held:
            await self._releaser.release(held)
            log.warning("released %s jobs, as the worker has ended; they run again", len(held))
