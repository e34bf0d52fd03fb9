"""Asks whether a server still commits, where no heartbeat tells: in a consumer, and beside a handoff."""

from __future__ import annotations

import asyncio
import logging
import time

from ..texts import printable
from . import statements
from .connection_group import PATIENCE, ConnectionGroup
from .given import Dsn
from .link import Link, temporary

SQL = statements.load("probe")
log = logging.getLogger("outbox.database")

EVERY = 2.0
"""Seconds between two questions. Each is a small record in the server's log."""


class Probe:
    """Cuts `group` when their server does not answer a commit, on a connection of its own, for so many seconds."""

    def __init__(self, dsn: Dsn, group: ConnectionGroup, *, pooled: bool = False, patience: float = PATIENCE) -> None:
        self._group, self._patience = group, patience
        self._refused = False
        self.answered: float | None = None  # when the last question was asked that was answered, by time.monotonic()
        self._link = Link(dsn, "probe", pooled=pooled, group=group)

    async def run(self) -> None:
        """Asks for ever, also while nothing else is asked: the first message after a failover need not wait then."""
        while True:
            await asyncio.sleep(min(EVERY, self._patience / 4))
            await self._ask()

    async def _ask(self) -> None:
        asked = time.monotonic()
        try:
            await self._link.connection()
            with self._group.within(self._patience):
                ((read_only,),) = await self._link.execute(SQL["probe"], {})
            self.answered = asked
            if read_only:
                self._group.cut("the server is read-only now")
        except Exception as error:
            if not temporary(error) and not self._refused:
                self._refused = True  # which is an answer as well
                log.error("can't ask whether the database commits: %s", printable(error))

    async def close(self) -> None:
        await self._link.close()
