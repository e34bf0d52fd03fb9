"""Step 6: distinguishes the first delivery of a message from duplicates, in the caller's transaction, sync or async.

A message's id and its effect are committed together or not at all. The database stores how far back the inbox
remembers, so it refuses an id that the inbox may have forgotten for every client.
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
from ..database.drivers.connection import AsyncConn, SyncConn
from ..errors import InvalidInput, TooNew, TooOld
from .execute import Steps, execute

SQL = statements.load("inbox")
log = logging.getLogger("outbox.inbox")

MEMORY_DAYS = (1, 200)
"""The fewest and the most days for which ids can be remembered: the inbox's child tables hold no more."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Inbox:
    """Distinguishes the first delivery of a message from all later ones, for one consumer.

    `consumer` names the program that has the effect. Consumers with different names each accept every message once.
    """

    consumer: str

    def __post_init__(self) -> None:
        check_name(self.consumer, "consumer")

    @overload
    def accept(self, conn: AsyncConn, message_id: UUID | str) -> Coroutine[Any, Any, bool]: ...
    @overload
    def accept(self, conn: SyncConn, message_id: UUID | str) -> bool: ...
    def accept(self, conn: AsyncConn | SyncConn, message_id: UUID | str) -> bool | Awaitable[bool]:
        """Returns True the first time and False for a duplicate, in the caller's transaction.

        Await it on an async connection. Call it before the effect, in the transaction that writes the effect. If that
        transaction rolls back, the id is forgotten. If another open transaction has recorded the same id, this call
        waits until it ends. At isolation levels above READ COMMITTED, a duplicate that was committed concurrently is a
        serialization failure of Postgres: try the transaction again.

        Raises InvalidInput, before any SQL, for an id that isn't a UUIDv7; TooOld for an id that the inbox may have
        forgotten, by the day (UTC) on which it was made; TooNew for an id that was made more than a day ahead. Each
        leaves the transaction usable, unless the id is forgotten during this call: then Postgres raises TooOld and ends
        the transaction.
        """
        accepted: bool | Awaitable[bool] = execute(conn, accepting(self.consumer, parse_id(message_id)))
        return accepted


def accepting(consumer: str, message_id: UUID) -> Steps[bool]:
    """Does what `Inbox.accept` does, as steps that run in the current transaction."""
    rows = yield SQL["inbox_accept"], {"consumer": consumer, "message_id": message_id}
    new, too_old, too_new, oldest, newest = rows[0]
    if too_old:
        raise _too_old(consumer, message_id, datetime.fromtimestamp(oldest, UTC))
    if too_new:
        raise _too_new(consumer, message_id, datetime.fromtimestamp(newest, UTC))
    return bool(new)


def _too_old(consumer: str, message_id: UUID, oldest: datetime) -> TooOld:
    sent_at = made_at(message_id)
    return TooOld(
        f"message {message_id} was made at {sent_at.isoformat()}, and the inbox of {consumer!r} remembers "
        f"nothing before {oldest.isoformat()}: it may be a duplicate",
        consumer=consumer, message_id=message_id, sent_at=sent_at, oldest=oldest,
    )  # fmt: skip


def _too_new(consumer: str, message_id: UUID, newest: datetime) -> TooNew:
    sent_at = made_at(message_id)
    return TooNew(
        f"message {message_id} says that it was made at {sent_at.isoformat()}, which is more than a day ahead: "
        f"{consumer!r} takes nothing after {newest.isoformat()}",
        consumer=consumer, message_id=message_id, sent_at=sent_at, newest=newest,
    )  # fmt: skip


async def forget(conn: psycopg.AsyncConnection[Any], days: float) -> None:
    """Forgets ids that were made more than `days` ago. From then on, the inbox refuses them."""
    for child, emptied in await (await conn.execute(SQL["inbox_forget"], {"days": days})).fetchall():
        if emptied:
            log.info("emptied outbox.%s, which was old", child)
        else:
            log.warning("outbox.%s is old, but in use; it is emptied the next time", child)


def parse_id(value: object) -> UUID:
    """Returns the UUID of a message's id, given as a UUID or as text. Raises InvalidInput if it isn't a UUIDv7."""
    try:
        found = value if isinstance(value, UUID) else UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        raise InvalidInput("message_id", f"{texts.shown(value)} is not a UUID") from None
    if found.version != 7:
        raise InvalidInput(
            "message_id", f"{found} is a UUID without a time (not version 7); use the header cloudEvents_id"
        )
    return found


def made_at(message_id: UUID) -> datetime:
    """Returns when a UUIDv7 was made. A time later than Python's last datetime is returned as that datetime."""
    try:
        return _EPOCH + timedelta(milliseconds=message_id.int >> 80)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
