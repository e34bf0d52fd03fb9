"""Changes rows in batches in which one bad row harms no other: together, then in halves, down to the bad one alone."""

from __future__ import annotations

import logging
import time
from typing import Any

from ..database.link import Link, temporary
from ..texts import printable

log = logging.getLogger("outbox.maintenance")

ALL: dict[str, Any] = {"only": None, "but": []}
"""Parameters for a statement that takes all rows."""

LEAVE_FOR, LEAVE_LOCKED_FOR = 60.0, 5.0
"""Seconds for which a row is skipped that the database refuses to change, and one that another session has locked."""

MOST_LEFT = 10_000
"""Most rows that each statement skips at a time: their ids are sent with it."""

LOCK_WAIT = "1s"
"""How long a statement waits for a lock. It takes its own row locks without waiting, but triggers may need more."""

LOCKED = "55P03"


class Apart:
    """Runs batch statements on one link.

    A statement has the parameters `only` (ids; null: any) and `but` (ids that it leaves). If it fails, another one
    names the ids that it would take, and it runs again for each half of them, and so on: one bad row of a thousand
    costs twenty statements. A row that fails alone is logged and left for a while.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._left: dict[str, dict[str, float]] = {}

    async def run(
        self, statement: bytes, ids: bytes, what: str, params: dict[str, Any], *, deletes: bool = False
    ) -> list[tuple[Any, ...]]:
        """Runs a statement and returns the rows of all its runs. `what` names a row in the log.

        `deletes` lets it delete history. Raises errors that concern no single row: a lost connection, a full disk.
        """
        left = self._still_left(what)
        try:
            return await self._execute(statement, {**params, "only": None, "but": list(left)}, deletes)
        except Exception as error:
            if temporary(error) and _state(error) != LOCKED:
                raise
        rows = []
        parts = _halves([row_id for (row_id,) in await self._link.execute(ids, {**params, "but": list(left)})])
        while parts:
            part = parts.pop()
            try:
                rows += await self._execute(statement, {**params, "only": part, "but": []}, deletes)
            except Exception as error:
                if temporary(error) and _state(error) != LOCKED:
                    raise
                if len(part) > 1:
                    parts += _halves(part)
                    continue
                wait = LEAVE_LOCKED_FOR if _state(error) == LOCKED else LEAVE_FOR
                if len(left) < MOST_LEFT:
                    left[part[0]] = time.monotonic() + wait
                log.error("%s %s: %s; tried again in %.0f s", what, part[0], printable(error), wait)
        return rows

    async def _execute(self, statement: bytes, params: dict[str, Any], deletes: bool) -> list[tuple[Any, ...]]:
        conn = await self._link.connection()
        async with conn.transaction():
            # For this transaction only, because a pooler gives the session to other clients.
            await conn.execute(
                "SELECT set_config('lock_timeout', %s, true), set_config('outbox.retention', %s, true)",
                (LOCK_WAIT, "on" if deletes else ""),
            )
            return await self._link.execute(statement, params)

    def _still_left(self, what: str) -> dict[str, float]:
        """Returns the rows to skip, without those whose time is over."""
        now = time.monotonic()
        self._left[what] = {row: until for row, until in self._left.get(what, {}).items() if until > now}
        return self._left[what]


def _state(error: Exception) -> str | None:
    return getattr(error, "sqlstate", None)


def _halves(ids: list[str]) -> list[list[str]]:
    """Returns both halves of these, the second one first, and none that is empty."""
    middle = (len(ids) + 1) // 2
    return [half for half in (ids[middle:], ids[:middle]) if half]
