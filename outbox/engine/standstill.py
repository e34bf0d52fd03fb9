"""Keeps a worker alive while a handler blocks its event loop, by computing or sleeping without an await.

A thread beside the loop logs the handler's name and keeps up the heartbeats, so that other handlers don't lose their
jobs. It does so for the longest timeout among the running jobs, plus a lease. After that it gives up the loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.session import connect
from ..process.places import place_of
from . import commit
from .attempt import NOTICE, Attempts
from .inflight import InFlight
from .job import Job, fail
from .lease import SQL, Lease

log = logging.getLogger("outbox.worker")

TURN_EVERY = 0.25
"""Seconds between two recorded turns of the loop, and between two checks of them."""

GIVE_BACK_WITHIN = 5.0
"""Seconds that the last statements may take before the process ends."""


class Standstill:
    """Watches the event loop of one worker. `timeout` returns the longest timeout (s) of what runs in it.

    `give_up` is called in the thread, with the reason, when the loop has been blocked for too long.
    """

    def __init__(
        self, dsn: Dsn, lease: Lease, inflight: InFlight, attempts: Attempts, *, group: ConnectionGroup,
        seconds: float, timeout: Callable[[], float], give_up: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self._dsn, self._group = dsn, group
        self._lease, self._inflight, self._attempts = lease, inflight, attempts
        self._seconds, self._timeout, self._give_up = seconds, timeout, give_up
        self._every = min(TURN_EVERY, seconds / 10)
        self._loop = asyncio.get_running_loop()
        self._thread_of_loop = threading.get_ident()
        self._turned = math.inf  # it is not watched yet
        self._found: tuple[str, Job | None] | None = None
        self._over = threading.Event()
        self._conn: psycopg.Connection[Any] | None = None

    @property
    def trouble(self) -> str | None:
        """For how long the event loop has stood still, and in what; None if it turns. From any thread."""
        stood = time.monotonic() - self._turned - self._every
        if self._over.is_set() or stood < NOTICE:
            return None
        found = self._found
        return f"the event loop has stood still for {stood:.0f} s" + (f", in {found[0]}" if found else "")

    async def run(self) -> None:
        """Records the loop's turns and logs how long it was blocked, until it is cancelled."""
        self._turned = time.monotonic()
        threading.Thread(target=self._watch, name="outbox watch", daemon=True).start()
        try:
            while True:
                await asyncio.sleep(self._every)
                before, self._turned = self._turned, time.monotonic()
                if (stood := self._turned - before - self._every) > NOTICE:
                    self._went_on(stood)
        finally:
            self._over.set()

    def _went_on(self, stood: float) -> None:
        found, self._found = self._found, None
        if found is not None:
            log.warning("the event loop stood still for %.1f s, in %s", stood, found[0], extra={"seconds": stood})

    def _watch(self) -> None:
        try:
            self._look()
        finally:
            if self._conn is not None:
                self._conn.close()

    def _look(self) -> None:
        stood, last = 0.0, time.monotonic()
        while not self._over.wait(self._every):
            now = time.monotonic()
            passed, last = now - last, now
            if now - self._turned < min(NOTICE, self._seconds / 4):
                stood = 0.0
                continue
            if passed > self._seconds / 2:
                continue  # the whole process was stopped or had no CPU: the loop may be about to go on
            stood += passed
            if self._found is None:
                self._found = self._culprit()
            if self._seconds / 6 < now - self._lease.beaten < self._lease.trusted:
                self._beat()
            if stood > self._timeout() + self._seconds:
                self._end(stood)
                return

    def _culprit(self) -> tuple[str, Job | None]:
        """Returns what runs in the loop: the handler's name and place, or the place alone, and the job."""
        where = place_of(self._thread_of_loop) or "an unknown place"
        with suppress(Exception):  # the loop may go on at this moment
            if (task := asyncio.current_task(self._loop)) and (named := self._attempts.handlers.of(task)):
                name, jobs = named
                return f"{name} ({where})", jobs[0]
        return where, None

    def _beat(self) -> None:
        sent = time.monotonic()
        try:
            if self._conn is None or self._conn.closed:
                self._conn = connect(self._dsn, "beat", pooled=True, group=self._group)
            if self._conn.execute(SQL["worker_beat_on"], {"worker": self._lease.id}).fetchone():
                self._lease.beaten = sent
        except psycopg.Error as error:
            log.debug("no beat: %s", error)

    def _end(self, stood: float) -> None:
        """Gives up the loop: the job that blocks it fails, and all others are released."""
        name, culprit = self._found or ("an unknown place", None)
        why = f"the event loop has stood still for {stood:.0f} s, in {name}: the worker ends, and its jobs are released"
        giving = threading.Thread(target=self._give_back, args=(culprit, stood, name), daemon=True)
        giving.start()
        giving.join(GIVE_BACK_WITHIN)
        if self._give_up is None:
            log.error("%s", why)
        else:
            self._give_up(why)

    def _give_back(self, culprit: Job | None, stood: float, name: str) -> None:
        held = [job for job in (*self._inflight.lanes.running(), *self._inflight.lanes.waiting()) if job is not culprit]
        with suppress(psycopg.Error), connect(self._dsn, "beat", pooled=True) as conn:
            if culprit is not None:
                late = TimeoutError(f"the event loop stood still for {stood:.0f} s, in this handler: {name}")
                conn.execute(*commit.fail([(culprit, fail(culprit, late))]))
            if held:
                conn.execute(*commit.release(held))
            conn.execute(SQL["worker_leave"], {"worker": self._lease.id})
