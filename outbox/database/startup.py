"""Starts a process: waits for a primary that takes a session, and checks what the process requires of the database.

It waits for a server that is down, is starting or is in recovery. If a server answers and refuses, or if no host of the
DSN exists, it raises the error at once, because only the user can correct that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psycopg

from ..process.service import Delays, Service, Trouble
from . import hosts, primary
from .connection_group import PATIENCE, ConnectionGroup
from .given import Dsn
from .link import first_line, temporary
from .session import connect

log = logging.getLogger("outbox.database")

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds before a primary is looked for again, doubled each time."""


async def begin(
    dsn: Dsn, service: Service, require: Callable[[psycopg.Connection[Any]], object], *, group: ConnectionGroup,
    patient: bool = True,
) -> None:  # fmt: skip
    """Calls `require` with a session on the primary, in a thread, as soon as there is one; or returns after a stop.

    Raises what `require` raises, and psycopg's error if the DSN leads nowhere. `patient`: also waits for servers that
    are down. Otherwise only for one that starts, or that was there before.
    """
    delays, trouble = Delays(FIRST_WAIT, LONGEST_WAIT), Trouble(_say)
    answered = False

    def ask() -> None:
        nonlocal answered
        with connect(dsn, "check", pooled=True, group=group) as conn:
            answered = True
            require(conn)

    while not service.stopping:
        try:
            await primary.look(dsn)
            with group.within(PATIENCE):
                await asyncio.to_thread(ask)
            trouble.set(None)
            return
        except psycopg.Error as error:
            if not temporary(error) or not await _may_pass(dsn, patient or answered):
                raise
            trouble.set(first_line(error))
        await service.sleep(delays.next())


async def _may_pass(dsn: Dsn, patient: bool) -> bool:
    """Returns whether waiting may help."""
    try:
        standings = await hosts.ask(dsn)
    except psycopg.OperationalError:  # of a function that returns the DSN: what it asks may be down, too
        return patient
    if any(each.refuses for each in standings) or all(each.unknown for each in standings):
        return False
    return patient or any(each.starting or each.trouble is None for each in standings)


def _say(why: str | None) -> None:
    if why is None:
        log.info("the database takes writes")
    else:
        log.warning("waiting for the database to take writes: %s", why)
