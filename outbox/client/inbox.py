"""Step 6: first time, or duplicate, in the caller's own transaction, on a sync or an async connection.

The record of a message's id and its effect are one commit, or neither is there. What the inbox may have forgotten is
refused, whoever asks: how far back it remembers stands in the database (see sql/functions/inbox.sql).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, overload
from uuid import UUID

import psycopg

from .. import texts
from ..checks import check_name
from ..database import statements
from ..errors import InvalidInput, TooNew, TooOld
from .execute import Steps, execute

SQL = statements.load("inbox")
log = logging.getLogger("outbox.inbox")

MEMORY_DAYS = (1, 200)
"""What the ring of children can hold, in days."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Inbox:
    """Tells the first delivery of a message from all later ones, for one consumer.

    `consumer` names what has the effect: two of different names each get every message.
    """

    consumer: str

    def __post_init__(self) -> None:
        check_name(self.consumer, "consumer")

    @overload
    def accept(self, conn: psycopg.AsyncConnection[Any], message_id: UUID | str) -> Coroutine[Any, Any, bool]: ...
    @overload
    def accept(self, conn: psycopg.Connection[Any], message_id: UUID | str) -> bool: ...
    def accept(
        self, conn: psycopg.AsyncConnection[Any] | psycopg.Connection[Any], message_id: UUID | str
    ) -> bool | Awaitable[bool]:
        """Return True the first time and False for a duplicate, in the caller's transaction; awaited on an async one.

        Call it in the transaction that the effect is written in, before the effect. Rolled back, the id is forgotten.
        While another transaction has the same id, it waits for that one's end. At the isolation levels above READ
        COMMITTED a duplicate that was committed meanwhile is Postgres' serialization failure: try again.

        Refused without any effect on the transaction: InvalidInput for what is no UUIDv7, before any SQL; TooOld
        for ids that the inbox may have forgotten, by the day (UTC) that they were made on; TooNew for those made more
        than a day ahead.
        """
        accepted: bool | Awaitable[bool] = execute(conn, self._accept(parse_id(message_id)))
        return accepted

    def _accept(self, message_id: UUID) -> Steps[bool]:
        rows = yield SQL["inbox_accept"], {"consumer": self.consumer, "message_id": message_id}
        new, too_old, too_new, oldest, newest = rows[0]
        if too_old:
            raise TooOld(self.consumer, message_id, made_at(message_id), datetime.fromtimestamp(oldest, UTC))
        if too_new:
            raise TooNew(self.consumer, message_id, made_at(message_id), datetime.fromtimestamp(newest, UTC))
        return bool(new)


async def forget(conn: psycopg.AsyncConnection[Any], days: float) -> None:
    """Forget the ids that were made longer ago, and from then on refuse them. For whoever keeps house."""
    for child, emptied in await (await conn.execute(SQL["inbox_forget"], {"days": days})).fetchall():
        if emptied:
            log.info("outbox.%s was old and is emptied", child)
        else:
            log.warning("outbox.%s is old, but in use: it waits for the next time", child)


def parse_id(value: object) -> UUID:
    """Return a message's id, given as a UUID or its text; else InvalidInput."""
    try:
        found = value if isinstance(value, UUID) else UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput("message_id", f"{texts.shown(value)} is no UUID") from None
    if found.version != 7:
        raise InvalidInput(
            "message_id", f"{found} is a UUID without its time (no version 7); take the header cloudEvents_id"
        )
    return found


def made_at(message_id: UUID) -> datetime:
    """Return when a UUIDv7 was made; the last moment that there is for those beyond."""
    try:
        return _EPOCH + timedelta(milliseconds=message_id.int >> 80)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
