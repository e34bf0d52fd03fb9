"""Handles one delivery (step 6): checks the inbox, calls the handler, or parks the message with the reason.

The record of the id and the handler's writes are one transaction. If the answer to its COMMIT is lost, the next attempt
asks the inbox, which knows the outcome.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import psycopg

from .. import texts
from ..client.inbox import accepting
from ..database import statements, user_transaction
from ..database.connection_group import ConnectionGroup
from ..database.given import Dsn
from ..database.link import Link, idle_ms
from ..database.session import READING, clean, connect, restore
from ..database.steps import Call
from ..database.user_transaction import Begin, Clean, Commit, Steps
from ..definition.failed_attempts import FailedAttempt
from ..definition.outcome import failure
from ..definition.reasons import from_handler, log_with
from ..definition.step_transaction import call_after_commit, call_after_commit_sync
from ..errors import HandlerError, TooNew, TooOld, Unreadable
from ..process.service import is_cancelled
from ..process.threads import Threads
from ..texts import printable
from .delivery import Arrival, Delivery, SyncDelivery, storable
from .handling import Handling

SQL = statements.load("receive")
log = logging.getLogger("outbox.consumer")

ALONE_FROM = 3
"""From this attempt on, and in its last one, a message is handled alone: if it kills the process, only it is blamed."""

_OUTAGES = {"57P01", "57P02", "57P03", "57P05"}
"""SQLSTATEs of a server that is starting or gone: they cost a message no attempt."""

_OUTAGE_CLASSES = {"08", "53", "58"}
"""Classes of SQLSTATE of a server that is unreachable or full, or can't read its disk. They cost no attempt either."""


class Receiver:
    """Handles one message after the other, on a connection of its own."""

    def __init__(
        self, dsn: Dsn, handling: Handling, *, group: ConnectionGroup | None = None, pooled: bool = False
    ) -> None:
        self._dsn, self._handling, self._pooled, self._group = dsn, handling, pooled, group or ConnectionGroup()
        self._link = Link(dsn, "consumer", pooled=pooled, session=READING, group=self._group)
        self._clean = Clean(clean("consumer", pooled=pooled), inside=pooled)
        self._sync: psycopg.Connection[Any] | None = None
        self._threads: Threads | None = None  # made in the event loop
        self.handles: str | None = None  # the message whose handler runs

    async def receive(self, arrival: Arrival) -> bool:
        """Handles a message or parks it, however long the database is unreachable. Returns False if stopped before."""
        try:
            delivery = arrival.read(Delivery if self._handling.is_async else SyncDelivery)
        except Unreadable as error:
            return await self._park(arrival, None, str(error))
        # A redelivered message may have killed the process that handled it, or only died with it. From here on, each of
        # its attempts is counted in the database before it begins.
        retry = self._handling.retry
        counted = may_kill = arrival.comes_again
        first = 1 if arrival.parked is not None else min(2, retry.attempts)
        while True:
            if counted:
                delivery.attempt = await self._next_attempt(delivery, first)
                if delivery.attempt > retry.attempts:
                    reason = f"its process ended during attempt {retry.attempts}, the last one"
                    return await self._park(arrival, delivery, reason)
            alone = may_kill and delivery.attempt >= min(ALONE_FROM, retry.attempts)
            try:
                async with self._handling.slots.taken(alone=alone):
                    if counted:  # not earlier: other messages may kill the process while this one waits for its slot
                        delivery.attempt = await self._count(delivery, first)
                    return await self._handle(arrival, delivery)
            except (TooOld, TooNew, HandlerError) as error:
                return await self._park(arrival, delivery, str(error))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and is_cancelled():
                    raise  # cancelled by us, not by the handler
                counted = not self._is_outage(error)
                if not counted:
                    await self._link.pause(error)
                    continue
                may_kill = True
                if (ended := await self._failed(arrival, delivery, error)) is not None:
                    return ended

    async def close(self) -> None:
        await self._link.close()
        if self._threads is not None:
            self._threads.close()
            self._threads = None  # it belongs to this loop, and the consumer may run again in another one
        if self._sync is not None:
            self._sync.close()

    async def _failed(self, arrival: Arrival, delivery: Delivery, error: BaseException) -> bool | None:
        """Parks a message after its last attempt; otherwise waits for the next one and returns None."""
        failed = failure(error, self._handling.retry, delivery.attempt)
        if failed.delay is None:
            return await self._park(arrival, delivery, failed.error, from_handler(error))
        log_with(log, logging.WARNING, from_handler(error),
                 "message %s: attempt %s of %s failed, the next one comes in %.1f s: %s", delivery.message_id,
                 delivery.attempt, self._handling.retry.attempts, failed.delay, printable(failed.error))  # fmt: skip
        self._report(delivery, from_handler(error), failed.delay)
        return None if await self._handling.service.sleep(failed.delay) else False

    async def _handle(self, arrival: Arrival, delivery: Delivery) -> bool:
        """Handles a message in a transaction, unless it was handled before."""
        if self._handling.is_async:
            conn = await self._link.connection()
            new = await user_transaction.run_async(conn, self._delivering(conn, arrival, delivery), self._clean)
            if new and (hooks := delivery.hooks):
                await call_after_commit(hooks, f"message {delivery.message_id}", self._handling.timeout, log)
        else:
            self._threads = self._threads or Threads("consumer", held=False)
            new = await self._threads.call(partial(self._in_thread, arrival, delivery))
        if new:
            self._handling.handled += 1
        else:
            self._handling.duplicates += 1
            log.info("message %s was handled before", delivery.message_id)
        return True

    def _in_thread(self, arrival: Arrival, delivery: Delivery) -> bool:
        if self._sync is None or self._sync.closed:
            self._sync = connect(self._dsn, "consumer", settings=READING, pooled=self._pooled, group=self._group)
        new = user_transaction.run(self._sync, self._delivering(self._sync, arrival, delivery), self._clean)
        if new and (hooks := delivery.hooks):
            call_after_commit_sync(hooks, f"message {delivery.message_id}", log)
        return new

    def _delivering(self, conn: Any, arrival: Arrival, delivery: Delivery) -> Steps[bool]:
        """Calls the handler, and commits its writes with the message's id; returns False if it was handled before."""
        yield Begin((SQL["delivery_mark"], self._mark(delivery)))
        new = yield from accepting(self._handling.inbox.consumer, delivery.message_id)
        if new:
            transaction = delivery.begin(conn)
            self.handles = str(delivery.message_id)
            try:
                yield Call(partial(self._handling.handler, delivery), self._handling.timeout)
            except (StopIteration, GeneratorExit) as error:  # neither a future nor a coroutine can hold these
                raise RuntimeError(f"the handler raised {type(error).__name__}") from error
            finally:
                transaction.end()
                self.handles = None
            transaction.require()
            _require_same(delivery, (yield SQL["delivery_mark_read"], {}))
        if _had_trouble(arrival, delivery):
            yield restore()
            yield SQL["delivery_settle"], self._known(arrival, delivery)
        yield Commit()
        return new

    async def _next_attempt(self, delivery: Delivery, first: int) -> int:
        known = {"consumer": self._handling.inbox.consumer, "message_id": delivery.message_id}
        rows = await self._link.repeat(SQL["delivery_begun"], known)
        return int(rows[0][0]) + 1 if rows else first

    async def _count(self, delivery: Delivery, first: int) -> int:
        known = {"consumer": self._handling.inbox.consumer, "message_id": delivery.message_id, "first": first}
        return int((await self._link.repeat(SQL["delivery_begin"], known))[0][0])

    async def _park(
        self, arrival: Arrival, delivery: Delivery | None, reason: str, raised: BaseException | None = None
    ) -> bool:
        """Parks a message with the reason. `raised` is what its handler raised at the last attempt."""
        level = logging.WARNING if raised is None else logging.ERROR
        reason = texts.clean(reason)
        known = {**self._known(arrival, delivery), "reason": reason}
        if arrival.parked is not None:
            await self._link.repeat(SQL["delivery_park_again"], known)
            log_with(log, level, raised, "parked message %s is parked again: %s", arrival.parked, printable(reason))
            if delivery is not None and raised is not None:
                self._report(delivery, raised, None)
            return True
        parked = {
            **known,
            "queue": texts.clean(self._handling.queue),
            "stated_id": texts.clean(str(arrival.stated_id)) if arrival.stated_id else None,
            "topic": texts.clean(arrival.topic),
            "body": arrival.body,
            "headers": storable(arrival.headers),
        }
        await self._link.repeat(SQL["delivery_park"], parked)
        self._handling.parked += 1
        if delivery is not None and raised is not None:
            self._report(delivery, raised, None)
        log_with(log, level, raised, "a message of topic %s is parked: %s", printable(arrival.topic), printable(reason))
        return True

    def _report(self, delivery: Delivery, error: BaseException, retry_in: float | None) -> None:
        if self._handling.reports is not None:
            consumer = self._handling.inbox.consumer
            failed = FailedAttempt(None, consumer, str(delivery.message_id), delivery.attempt, retry_in)
            self._handling.reports.tell(self._handling.on_error, error, failed)

    def _known(self, arrival: Arrival, delivery: Delivery | None) -> dict[str, Any]:
        message_id = None if delivery is None else delivery.message_id
        return {"consumer": self._handling.inbox.consumer, "message_id": message_id, "digest": arrival.digest,
                "parked": arrival.parked}  # fmt: skip

    def _mark(self, delivery: Delivery) -> dict[str, Any]:
        return {"mark": str(delivery.message_id), "idle_ms": idle_ms(self._handling.timeout)}

    def _is_outage(self, error: BaseException) -> bool:
        """Returns whether an error concerns the database, not the message or its handler."""
        if not isinstance(error, psycopg.Error):
            return False
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            if left := self._is_closed():  # else the handler's own transaction was read-only
                self._group.cut("the server is read-only now")
            return left or self._pooled
        if error.sqlstate is not None:
            return error.sqlstate in _OUTAGES or error.sqlstate[:2] in _OUTAGE_CLASSES
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return False  # such as a block of psycopg's that the handler left open, which costs the connection, too
        return self._is_closed()

    def _is_closed(self) -> bool:
        if self._handling.is_async:
            return not self._link.is_open
        return self._sync is None or self._sync.closed


def _had_trouble(arrival: Arrival, delivery: Delivery) -> bool:
    return arrival.comes_again or delivery.attempt > 1


def _require_same(delivery: Delivery, rows: list[Any]) -> None:
    if rows != [(str(delivery.message_id),)]:
        raise HandlerError(
            "the handler ended the transaction that it was given: what it wrote may be committed, and the message "
            "counts as handled. Don't commit or roll back on delivery.connection; use delivery.connection.transaction()"
        )
