"""Step 6: one delivery, through the inbox, to the handler: one effect, or parked with the reason.

The record of the id and what the handler writes are one transaction, so a COMMIT whose answer was lost is asked
again by the next attempt: the inbox knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg

from .. import texts
from ..checks import as_delay
from ..client.inbox import Inbox, accepting
from ..database import statements, user_transaction
from ..database.dsn import engine_conninfo
from ..database.link import Link, idle_ms, threshold
from ..database.steps import Call
from ..database.user_transaction import Begin, Commit, Steps
from ..definition.outcome import Backoff, Reject, Retry
from ..errors import HandlerError, TooNew, TooOld, Unreadable
from ..texts import printable
from .delivery import Arrival, Delivery, storable

SQL = statements.load("receive")
log = logging.getLogger("outbox.consumer")

# From this attempt on, and at its last one, a message is handled while no other is: should it kill the process, it
# kills alone.
ALONE_FROM = 3
# A server that is full, read-only, starting or gone: no message's fault.
_OUTAGES = {"25006", "57P01", "57P02", "57P03", "57P05"}
_OUTAGE_CLASSES = {"08", "53", "58"}


@dataclass
class Terms:
    """What all lanes of a consumer share: whom messages are handled for, by what, and how many at once."""

    inbox: Inbox
    queue: str
    handler: Callable[[Delivery], Any]
    is_async: bool
    retry: Backoff
    timeout: float
    concurrency: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    handled: int = 0
    duplicates: int = 0
    parked: int = 0

    def __post_init__(self) -> None:
        self._room = asyncio.Semaphore(self.concurrency)
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def slot(self, alone: bool) -> AsyncIterator[None]:
        """Wait for a turn to handle a message; `alone`, for one while no other message is handled."""
        slots = self.concurrency if alone else 1
        async with self._turn:  # or two that want all would wait for each other
            for _ in range(slots):
                await self._room.acquire()
        try:
            yield
        finally:
            for _ in range(slots):
                self._room.release()


class Receiver:
    """Handles one message after the other, on a connection of its own."""

    def __init__(self, dsn: str, terms: Terms, *, pooled: bool = False) -> None:
        self._dsn, self._terms, self._pooled = dsn, terms, pooled
        self._link = Link(dsn, "consumer", pooled=pooled)
        self._sync: psycopg.Connection[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")

    async def settle(self, arrival: Arrival) -> bool:
        """Handle a message or park it, however long the database is away. False: neither, as we are to stop."""
        try:
            delivery = arrival.read()
        except Unreadable as error:
            return await self._park(arrival, None, str(error))
        # What comes again may be what has killed its process, or have died with it: from here on it is counted.
        retry = self._terms.retry
        again = suspect = arrival.redelivered or arrival.parked is not None
        first = 1 if arrival.parked is not None else min(2, retry.attempts)
        while True:
            if again:
                delivery.attempt = await self._next_attempt(delivery, first)
                if delivery.attempt > retry.attempts:
                    ended = f"its process ended during attempt {retry.attempts}, the last one"
                    return await self._park(arrival, delivery, ended)
            alone = suspect and delivery.attempt >= min(ALONE_FROM, retry.attempts)
            try:
                async with self._terms.slot(alone):
                    if again:  # here, where nothing else kills the process before it is begun
                        delivery.attempt = await self._count(delivery, first)
                    return await self._handle(arrival, delivery)
            except (TooOld, TooNew, HandlerError) as error:
                return await self._park(arrival, delivery, str(error))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise  # ours, not the handler's
                again = not self._is_outage(error)
                if not again:
                    await self._link.pause(error)
                    continue
                suspect = True
                delay = None if isinstance(error, Reject) else retry.delay(delivery.attempt)
                if delay is None:
                    return await self._park(arrival, delivery, _text(error))
                if isinstance(error, Retry) and (after := as_delay(error.after)) is not None:
                    delay = after
                log.warning("message %s: attempt %s failed, the next one in %.1f s: %s", delivery.message_id,
                            delivery.attempt, delay, printable(_text(error)))  # fmt: skip
                if await self._stopped_within(delay):
                    return False

    async def close(self) -> None:
        await self._link.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._sync is not None:
            self._sync.close()

    async def _handle(self, arrival: Arrival, delivery: Delivery) -> bool:
        """Handle a message in a transaction, unless it was handled before."""
        if self._terms.is_async:
            conn = await self._link.connection()
            new = await user_transaction.run_async(conn, self._delivering(conn, arrival, delivery))
        else:
            loop = asyncio.get_running_loop()
            new = await loop.run_in_executor(self._thread, self._in_thread, arrival, delivery)
        if new:
            self._terms.handled += 1
        else:
            self._terms.duplicates += 1
            log.info("message %s was handled before", delivery.message_id)
        return True

    def _in_thread(self, arrival: Arrival, delivery: Delivery) -> bool:
        if self._sync is None or self._sync.closed:
            conninfo = engine_conninfo(self._dsn, "consumer")
            self._sync = psycopg.connect(conninfo, autocommit=True, prepare_threshold=threshold(self._pooled))
        return user_transaction.run(self._sync, self._delivering(self._sync, arrival, delivery))

    def _delivering(self, conn: Any, arrival: Arrival, delivery: Delivery) -> Steps[bool]:
        """Calls the handler, and commits what it wrote with the message's id; returns False for one handled before."""
        yield Begin((SQL["delivery_mark"], self._mark(delivery)))
        new = yield from accepting(self._terms.inbox.consumer, delivery.message_id)
        if new:
            delivery.connection = conn
            try:
                yield Call(partial(self._terms.handler, delivery), self._terms.timeout)
            except (StopIteration, GeneratorExit) as error:  # which neither a future nor a coroutine can hold
                raise RuntimeError(f"the handler raised {type(error).__name__}") from error
            _require_same(delivery, (yield SQL["delivery_mark_read"], {}))
        if _had_trouble(arrival, delivery):
            yield SQL["delivery_settle"], self._known(arrival, delivery)
        yield Commit()
        return new

    async def _next_attempt(self, delivery: Delivery, first: int) -> int:
        known = {"consumer": self._terms.inbox.consumer, "message_id": delivery.message_id}
        rows = await self._link.repeat(SQL["delivery_begun"], known)
        return int(rows[0][0]) + 1 if rows else first

    async def _count(self, delivery: Delivery, first: int) -> int:
        known = {"consumer": self._terms.inbox.consumer, "message_id": delivery.message_id, "first": first}
        return int((await self._link.repeat(SQL["delivery_begin"], known))[0][0])

    async def _park(self, arrival: Arrival, delivery: Delivery | None, reason: str) -> bool:
        reason = texts.clean(reason)
        known = {**self._known(arrival, delivery), "reason": reason}
        if arrival.parked is not None:
            await self._link.repeat(SQL["delivery_park_again"], known)
            log.warning("parked message %s is parked again: %s", arrival.parked, printable(reason))
            return True
        parked = {
            **known,
            "queue": texts.clean(self._terms.queue),
            "stated_id": texts.clean(str(arrival.stated_id)) if arrival.stated_id else None,
            "topic": texts.clean(arrival.topic),
            "body": arrival.body,
            "headers": storable(arrival.headers),
        }
        await self._link.repeat(SQL["delivery_park"], parked)
        self._terms.parked += 1
        log.warning("a message of topic %s is parked: %s", printable(arrival.topic), printable(reason))
        return True

    def _known(self, arrival: Arrival, delivery: Delivery | None) -> dict[str, Any]:
        message_id = None if delivery is None else delivery.message_id
        return {"consumer": self._terms.inbox.consumer, "message_id": message_id, "digest": arrival.digest,
                "parked": arrival.parked}  # fmt: skip

    def _mark(self, delivery: Delivery) -> dict[str, Any]:
        return {"mark": str(delivery.message_id), "idle_ms": idle_ms(self._terms.timeout)}

    def _is_outage(self, error: BaseException) -> bool:
        """Whether it is the database's trouble, not the message's or its handler's."""
        if not isinstance(error, psycopg.Error):
            return False
        if error.sqlstate is not None:
            return error.sqlstate in _OUTAGES or error.sqlstate[:2] in _OUTAGE_CLASSES
        if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return False  # such as a block of psycopg's that the handler left open, which costs the connection, too
        if self._terms.is_async:
            return not self._link.is_open
        return self._sync is None or self._sync.closed

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._terms.stopping.wait(), seconds)
        return self._terms.stopping.is_set()


def _had_trouble(arrival: Arrival, delivery: Delivery) -> bool:
    return arrival.redelivered or arrival.parked is not None or delivery.attempt > 1


def _require_same(delivery: Delivery, rows: list[Any]) -> None:
    if rows != [(str(delivery.message_id),)]:
        raise HandlerError(
            "the handler ended the transaction that it was given: what it wrote may be committed, and the message "
            "counts as handled. Don't commit or roll back on delivery.connection; use delivery.connection.transaction()"
        )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _text(error: BaseException) -> str:
    """What is kept of an exception: the words of those that are meant as words, else all that there is."""
    if isinstance(error, Reject | Retry):
        with contextlib.suppress(BaseException):
            return str(error)
    return texts.describe(error)
