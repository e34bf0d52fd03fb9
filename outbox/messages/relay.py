"""Step 5: cut a window, send its messages, move the cursor; until told to stop, through any loss of either side.

The log (log.py) and the target (target.py) know nothing of each other. What a target has not confirmed is still in the
log: a relay that is killed anywhere sends a part again and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

import psycopg

from ..checks import check_name
from ..database import killpoints
from ..database.connection_group import PATIENCE
from ..database.given import AnyDsn, given
from ..database.link import first_line, temporary
from ..errors import TakenOver
from ..process.embedding import Embedded, Signs
from ..process.service import Delays, Service, Trouble, cancel, side_by_side
from .log import Log, Window
from .parking import Parking
from .target import LEASE, Target

log = logging.getLogger("outbox.relay")

HEARTBEAT_EVERY = 1.0
"""Seconds between two heartbeats: several must be missed before the lease ends (target.LEASE)."""

ROTATE_EVERY = 5.0
"""Seconds between two attempts to empty old tables of the log."""

POLL_FIRST, POLL_LAST = 0.02, 0.5
"""Seconds between two looks at an empty log, doubled each time. Writers notify an idle relay: few looks are enough."""

IDLE_AFTER = 0.1
"""Seconds without messages after which writers are asked to notify: under load, a NOTIFY would serialize commits."""

RECONNECT_FIRST, RECONNECT_LAST = 0.05, 2.0
"""Seconds before the database is tried again, doubled each time."""

STAND_BY = 1.0
"""Seconds between two attempts to take a name that another process holds."""

GRACE = 5.0
"""Seconds after a stop in which the target may confirm what is under way, so that it need not be sent again."""


class Relay(Embedded):
    """Delivers a database's messages, each at least once. One process at a time holds the relay's name.

    Relays of other names are independent: each gets every message. `strict` keeps the order of each key, behind
    parked messages too. `dsn` must be direct, not a pooler's: it listens. `drain` ends the run when nothing is left.
    A new name gets all that is in the log; with `from_now`, what is committed from now on. A name that has messages
    left begins with other settings of its target only with `change_settings`; otherwise it raises SettingsError.
    """

    def __init__(
        self,
        dsn: AnyDsn,
        target: Target,
        *,
        name: str = "default",
        strict: bool = False,
        drain: bool = False,
        from_now: bool = False,
        change_settings: bool = False,
    ) -> None:
        self._target = target
        self._log = Log(
            given(dsn), check_name(name, "relay"), target.name, target.lease,
            from_now=from_now, settings=target.settings, change_settings=change_settings,
        )  # fmt: skip
        self._parking = Parking(self._log, target, strict)
        self._drain = drain
        self._service = Service("Relay")
        self._elsewhere = Trouble(_say_elsewhere)
        self._idle = self._ready = False
        self.relayed = self.parked = 0

    def stop(self) -> None:
        """Sends nothing more and ends, at most 5 seconds after what is under way. Called again, it ends at once."""
        self._service.stop()

    async def run(self) -> None:
        """Relays until `stop`, or with `drain` until nothing is left.

        Waits for a primary first. Raises SchemaError if it isn't ready for this code.
        """
        await self._service.run(self._until_stop, self._log.leave, self._log.close, self._target.close)

    def _signs(self) -> Signs:
        beaten = self._target.lease.confirmed_at if self._elsewhere.now is None else None
        return Signs(self._ready, beaten, LEASE, in_flight=0, trouble=self._target.trouble.now)

    def _stands(self, *, ready: bool) -> None:
        """Notes whether it relays or stands by, or can do neither."""
        self._ready = ready
        if ready:
            self._service.begin()

    async def _until_stop(self) -> None:
        await self._log.begin(self._service, patient=not self._drain)
        leading = side_by_side(self._lead_when_free(), self._log.watch())
        await self._service.until_stop(leading, grace=GRACE)

    async def _lead_when_free(self) -> None:
        """Relays whenever the name is free and the database is there."""
        delays = Delays(RECONNECT_FIRST, RECONNECT_LAST)
        while not self._service.stopping:
            try:
                await self._log.connect()
                with self._log.within(PATIENCE):
                    window = await self._log.take_over()
                log.info("relaying")
                self._stands(ready=True)
                self._elsewhere.set(None)
                delays.reset()
                return await side_by_side(self._work(window), self._beat(), self._rotate())
            except TakenOver as error:
                self._elsewhere.set(str(error))
                self._stands(ready=True)
                await self._target.close()
                await self._service.sleep(STAND_BY * random.uniform(0.5, 1))
            except (psycopg.Error, OSError) as error:
                if not temporary(error):
                    raise
                log.warning("%s; trying again", first_line(error))
                self._stands(ready=False)
                await self._log.close()
                await self._target.close()
                await self._service.sleep(delays.next())

    async def _work(self, window: Window | None) -> None:
        """Sends the open window, then whatever is new."""
        polls = Delays(POLL_FIRST, POLL_LAST)
        quiet_since = time.monotonic()
        while not self._service.stopping:
            if window is None:
                await self._retry_parked(all_of_it=self._drain)
                window = await self._log.cut()
            if window is not None:
                await self._set_idle(False)
                await self._send(window)
                window, quiet_since = None, time.monotonic()
                polls.reset()
            elif self._drain:
                return
            elif not self._idle and time.monotonic() - quiet_since > IDLE_AFTER:
                await self._set_idle(True)  # and one more look: what was committed before has notified nothing
            elif await self._log.wait(polls.next()):
                polls.reset()

    async def _send(self, window: Window) -> None:
        """Sends a window part by part, and fetches the next part meanwhile."""
        parts = self._log.read(window)
        part = await anext(parts, None)
        if part is None:
            await self._log.advance(0, 0, {}, done=True)
        while part:
            started = time.monotonic()
            following = asyncio.ensure_future(anext(parts, None))
            try:
                stopped = await self._parking.stopped_keys(part)
                parked = await self._target.deliver(part, stopped)
                then = await following
            finally:
                await cancel(following)
            killpoints.passing("K10")
            await self._log.advance(part[-1].id, len(part) - len(parked), parked, done=then is None)
            self.relayed += len(part) - len(parked)
            self.parked += (parked_now := self._parking.note(parked))
            log.info("%s relayed, %s parked in %.1f ms", len(part) - len(parked), parked_now,
                     (time.monotonic() - started) * 1000)  # fmt: skip
            if self._service.stopping:
                return
            await self._retry_parked()
            part = then

    async def _retry_parked(self, *, all_of_it: bool = False) -> None:
        relayed, expired = await self._parking.retry(all_of_it=all_of_it)
        self.relayed += relayed
        self.parked += expired

    async def _beat(self) -> None:
        while True:
            await self._log.beat(self._target.trouble.now, self._idle)
            await asyncio.sleep(HEARTBEAT_EVERY)

    async def _rotate(self) -> None:
        known: dict[str, str] = {}
        while True:
            stuck = await self._log.rotate()
            for child in set(stuck) - set(known):
                log.warning("outbox.%s can't be emptied: %s", child, stuck[child])
            known = stuck
            await asyncio.sleep(ROTATE_EVERY)

    async def _set_idle(self, idle: bool) -> None:
        if idle != self._idle:
            self._idle = idle
            await self._log.beat(self._target.trouble.now, idle)


def _say_elsewhere(why: str | None) -> None:
    if why is not None:
        log.info("%s; standing by", why)
