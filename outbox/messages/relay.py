"""Step 5: cut a window, hand its messages on, move the cursor; for ever, through any loss of either side.

The log (log.py) and the target (rabbitmq/, handoff.py) know nothing of each other. What a target has not
answered for is still in the log: a relay that is killed anywhere repeats a part, and loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from typing import Protocol

import psycopg

from .. import service
from ..checks import check_name
from ..database import killpoints
from ..database.link import first_line, temporary
from ..errors import DefinitionError, TakenOver
from ..texts import printable
from .log import LEASE, Log, Outgoing, Window

log = logging.getLogger("outbox.relay")

BEAT = 1.0
ROTATE_EVERY = 5.0
RETRY_EVERY = 1.0
POLL_FIRST, POLL_LAST = 0.02, 0.5
IDLE_AFTER = 0.1
GRACE = 5.0


class Target(Protocol):
    """Where messages go. `deliver` returns when each is there or can't be: those, with the reason."""

    async def deliver(
        self, messages: Sequence[Outgoing], stopped_keys: set[str]
    ) -> dict[int, tuple[Outgoing, str]]: ...

    async def close(self) -> None: ...


class Relay:
    """Hands the messages of a database on, each at least once, under a name that one process has at a time.

    Relays of other names are independent: each gets every message. `strict` keeps the order of each key, behind
    parked messages too. `dsn` must be direct, not a pooler's: it listens. `drain` ends the run when nothing is left.
    A name that is new gets all that is in the log; with `from_now`, what is committed from now on.
    """

    def __init__(
        self, dsn: str, *, name: str = "default", strict: bool = False, drain: bool = False, from_now: bool = False
    ) -> None:
        self._log = Log(dsn, check_name(name, "relay"), "", from_now=from_now)
        self._strict, self._drain = strict, drain
        self._target: Target | None = None
        self._stopping = asyncio.Event()
        self._trouble: str | None = None
        self._idle = False
        self._standing_by = False
        self._retried_at = 0.0
        self.relayed = self.parked = 0

    def to(self, target: Target, described: str) -> None:
        """Say where messages go, and how `status` names it."""
        self._target = target
        self._log.target = described

    def stop(self) -> None:
        """Send nothing more, wait a few seconds for what is under way, and end."""
        self._stopping.set()

    def may_send(self) -> bool:
        """Whether the name is surely still ours: a process that was frozen must not go on from where it was."""
        return time.monotonic() - self._log.verified < LEASE / 2

    def trouble(self, what: str | None) -> None:
        """Take note of what is wrong with the target, or that it is over."""
        if what != self._trouble:
            if what:
                log.warning("%s; messages wait in the log", printable(what))
            else:
                log.info("the target takes messages again")
        self._trouble = what

    async def run(self) -> None:
        """Relay until `stop`, or with `drain` until nothing is left."""
        if self._target is None:
            raise DefinitionError("a relay needs a target: call `to` first")
        wait = POLL_FIRST
        try:
            while not self._stopping.is_set():
                try:
                    await self._log.connect()
                    window = await self._log.take_over()
                    log.info("relaying")
                    self._standing_by = False
                    wait = POLL_FIRST
                    if await self._relay(window):
                        break
                except TakenOver as error:
                    if not self._standing_by:
                        log.info("%s; standing by", error)
                    self._standing_by = True
                    await self._target.close()
                    await self._sleep(random.uniform(0.5, 1))
                except (psycopg.Error, OSError) as error:
                    if not temporary(error):
                        raise
                    log.warning("%s; trying again", first_line(error))
                    await self._log.close()
                    await self._target.close()
                    await self._sleep(wait)
                    wait = min(2.0, wait * 2)
        finally:
            try:
                with contextlib.suppress(psycopg.Error, OSError):  # TimeoutError is one of the latter
                    await asyncio.wait_for(self._log.leave(), GRACE)
            finally:
                await self._log.close()
                await self._target.close()

    async def _relay(self, window: Window | None) -> bool:
        """Work and beat side by side; True when it is time to end."""
        work, beat = asyncio.create_task(self._work(window)), asyncio.create_task(self._beat())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({work, beat, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done() and not work.done():
                await asyncio.wait({work, beat}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            for task in (beat, work):
                if task.done():
                    task.result()
            return True
        finally:
            await service.cancel(work, beat, stopping)

    async def _work(self, window: Window | None) -> None:
        delay = POLL_FIRST
        while not self._stopping.is_set():
            if window is None:
                await self._retry_parked()
                window = await self._log.cut()
            if window is not None:
                await self._set_idle(False)
                await self._send(window)
                window, delay = None, POLL_FIRST
            elif self._drain:
                return
            elif not self._idle and delay > IDLE_AFTER:
                await self._set_idle(True)  # and one more look: what came before has woken nobody
            elif await self._log.wait(delay):
                delay = POLL_FIRST
            else:
                delay = min(POLL_LAST, delay * 2)

    async def _send(self, window: Window) -> None:
        """Hand a window on, part by part; the next part is fetched meanwhile."""
        assert self._target is not None
        parts = self._log.read(window)
        part = await anext(parts, None)
        if part is None:
            await self._log.advance(0, 0, {}, done=True)
        while part:
            started = time.monotonic()
            following = asyncio.ensure_future(anext(parts, None))
            try:
                stopped = await self._log.blocked_keys(part) if self._strict else set()
                parked = await self._target.deliver(part, stopped)
                then = await following
            finally:
                await service.cancel(following)
            killpoints.passing("K10")
            await self._log.advance(part[-1].id, len(part) - len(parked), parked, done=then is None)
            self.relayed += len(part) - len(parked)
            self.parked += len(parked)
            log.info("%s relayed, %s parked in %.1f ms", len(part) - len(parked), len(parked),
                     (time.monotonic() - started) * 1000)  # fmt: skip
            if self._stopping.is_set():
                return
            part = then

    async def _retry_parked(self) -> None:
        """Send again what a person wants to be sent again, between two windows."""
        if time.monotonic() - self._retried_at < RETRY_EVERY and not self._drain:
            return
        assert self._target is not None
        while messages := await self._log.to_retry(self._strict):
            failed = await self._target.deliver(messages, set())
            sent = [message.id for message in messages if message.id not in failed]
            await self._log.settle_retried(sent, {id_: reason for id_, (_, reason) in failed.items()})
            self.relayed += len(sent)
            log.info("%s parked messages relayed, %s parked again", len(sent), len(failed))
        self._retried_at = time.monotonic()

    async def _beat(self) -> None:
        rotate_at = 0.0
        known: list[str] = []
        while True:
            await self._log.beat(self._trouble, self._idle)
            if time.monotonic() >= rotate_at:
                rotate_at = time.monotonic() + ROTATE_EVERY
                stuck = await self._log.rotate()
                for child in set(stuck) - set(known):
                    log.warning("outbox.%s can't be emptied: a transaction that writes messages is open", child)
                known = stuck
            await asyncio.sleep(BEAT)

    async def _set_idle(self, idle: bool) -> None:
        if idle != self._idle:
            self._idle = idle
            await self._log.beat(self._trouble, idle)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
