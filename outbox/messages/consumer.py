"""Runs a consumer: takes messages from a queue into lanes that keep each key's order, and handles them.

A message is acknowledged when its transaction has committed or it is parked. If a process or the broker dies before
that, the message is delivered again, and the inbox tells whether it was handled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeAlias

import psycopg

from .. import settings
from ..checks import check_number
from ..client.inbox import MEMORY_DAYS, Inbox, forget
from ..database import killpoints, migrations, probe, startup, statements
from ..database.connection_group import PATIENCE, ConnectionGroup
from ..database.given import AnyDsn, Dsn, both
from ..database.link import Link, first_line, temporary
from ..database.probe import Probe
from ..database.session import require_pooled
from ..definition import hooks
from ..definition.failed_attempts import OnError, Reports
from ..definition.handlers import require_takes
from ..definition.hooks import Around, surround
from ..definition.lifespan import Lifespan, Lifespans
from ..definition.outcome import Backoff
from ..errors import DefinitionError, OutboxError, SettingsError
from ..process import ending
from ..process.embedding import Embedded, Signs
from ..process.service import Service, Trouble, side_by_side
from ..process.signals import on_signals
from ..texts import printable
from .delivery import Arrival, Delivery, SyncDelivery
from .handling import Handling, Slots
from .receive import Receiver

SQL = statements.load("consumer")
log = logging.getLogger("outbox.consumer")

PREFETCH = 20
"""Unacknowledged messages for each one handled at a time, so that the next ones are here when one ends."""

RETRY_EVERY = 2.0
"""Seconds between two checks for parked messages that a person wants to retry."""

FORGET_EVERY = 3600.0
"""Seconds between two attempts to forget old ids: the inbox forgets them by the week."""

RETRY = Backoff(first=1, factor=2, max=60)
"""Default back-off for retries. Later messages of the same key wait behind the retried one."""


Handler: TypeAlias = Callable[[Delivery], Coroutine[Any, Any, object]] | Callable[[SyncDelivery], object]
"""A function that handles deliveries, async or plain."""


async def consume(queue: str, handler: Handler, **options: Any) -> None:
    """Handles the messages of a RabbitMQ queue, each with one effect, until SIGTERM or Ctrl-C.

    The options are those of Consumer, which is for programs that stop for other reasons. The process ends soon after
    the grace time; if handlers are still running, it ends anyway, with exit code 1.
    """
    consumer = Consumer(queue, handler, **options)
    on_signals(consumer.stop, consumer.grace)
    await consumer.run()
    if consumer.left:
        ending.exit_soon(main_thread_ends=False)  # asyncio and Python would wait for the handlers
        sys.exit(1)


class Consumer(Embedded):
    """Handles the messages of a queue until `stop`. Any number of processes share a queue.

    `handler` gets a Delivery, in a transaction on `delivery.connection` that also records the message's id: both are
    committed, or neither. A sync handler runs in a thread, on a sync connection. It may raise Retry(after=seconds) or
    Reject(reason). After any other exception the message is retried by `retry`, and parked after the last attempt (see
    `outbox parked`). A message that can't be read is parked at once.

    `consumer` names what has the effect in the inbox (default: the queue's name). `dsn` and `amqp_url` default to the
    settings OUTBOX_DSN and OUTBOX_AMQP_URL. Of several URLs, in a list or with commas between them, it takes the next
    one when a broker is lost. With `topics`, the queue is bound to `exchange`, and both are made if they aren't there:
    a durable exchange of type topic, a quorum queue. Start the consumer before the relay then: a message that no queue
    takes within a minute is parked. `concurrency` is how many keys are handled at once; the messages of a key are
    handled one after the other. `timeout` (seconds) bounds an async handler; a sync one can't be interrupted. `grace`
    (seconds) is how long running handlers may take after `stop`. Ids are remembered for `keep_inbox` days (None:
    another process forgets them); older messages are parked. `left` names the messages whose handlers run on after
    `run` has returned. For `around`, `lifespan` and `on_error`, see docs/hooks.md.
    """

    def __init__(
        self,
        queue: str,
        handler: Handler,
        *,
        consumer: str | None = None,
        dsn: AnyDsn | None = None,
        amqp_url: str | Sequence[str] | None = None,
        exchange: str = "",
        topics: Sequence[str] = (),
        concurrency: int = 1,
        retry: Backoff | None = None,
        timeout: float = 60.0,
        grace: float = 30.0,
        keep_inbox: float | None = 90.0,
        around: Around | Iterable[Around] = (),
        lifespan: Lifespan | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._dsn, amqp_url, self._pooled = _connections(dsn, amqp_url)
        require_takes(handler, f"consumer of {printable(queue)}", "a Delivery")
        if topics and not exchange:
            raise DefinitionError("topics are bound to an exchange: give its name")
        check_number(concurrency, "concurrency", 1, 1_000)
        check_number(timeout, "timeout", 0.001, 86_400)
        check_number(grace, "grace", 0, 86_400)
        if keep_inbox is not None:
            check_number(keep_inbox, "keep_inbox", *MEMORY_DAYS)
        self.grace, self._keep_inbox = grace, keep_inbox
        self.left: list[str] = []
        self._service = Service("Consumer")
        own, self._lifespans = hooks.check("consumer: ", around, lifespan, on_error), Lifespans()
        is_async = inspect.iscoroutinefunction(handler)
        handler = surround(handler, is_async=is_async, hooks=own, lifespans=self._lifespans, name="the handler")
        self._handling = Handling(
            Inbox(queue if consumer is None else consumer), queue, handler, retry or RETRY, timeout,
            Slots(concurrency), self._service, own.on_error,
        )  # fmt: skip
        try:
            from .rabbitmq.subscription import Subscription
        except ModuleNotFoundError as error:
            raise OutboxError(f'{error}. Run: pip install "outbox-engine[rabbitmq]"') from None
        self._trouble = Trouble(self._say, now="not connected yet")
        self._subscription = Subscription(
            amqp_url, queue, exchange=exchange, topics=topics, prefetch=PREFETCH * concurrency,
            take=self._take, trouble=self._trouble,
        )  # fmt: skip
        self._concurrency = concurrency
        self._make()

    def _make(self) -> None:
        """Makes what belongs to one run and its event loop."""
        self._trouble.now = "not connected yet"
        self._group = group = ConnectionGroup()
        self._probe = Probe(self._dsn, group, pooled=self._pooled)
        self._handling.slots, self._handling.reports = Slots(self._concurrency), Reports()
        self._lanes = [
            _Lane(Receiver(self._dsn, self._handling, group=group, pooled=self._pooled))
            for _ in range(self._concurrency)
        ]
        self._retried: set[int] = set()

    async def run(self) -> None:
        """Handles messages until `stop`.

        Waits for a primary first. Raises SchemaError if it isn't ready for this code. After that, nothing that a
        handler, a message, or a restart of Postgres or RabbitMQ does ends it.
        """
        if not self._service.running:
            self._make()
        receivers = [lane.receiver.close for lane in self._lanes]
        receivers.append(self._probe.close)
        if self._handling.reports is not None:
            receivers.append(self._handling.reports.close)
        try:
            await self._service.run(self._serve, self._subscription.close, *receivers, last=self._lifespans.close)
        finally:
            self.left = [lane.receiver.handles for lane in self._lanes if lane.receiver.handles]
            if self.left:
                told = "still running, though the consumer has stopped: the handlers of messages %s"
                log.error(told, ", ".join(self.left))
        counts = self._handling
        log.info("stopped: %s handled, %s duplicates, %s parked", counts.handled, counts.duplicates, counts.parked)

    def stop(self) -> None:
        """Takes no more messages and lets running handlers finish within `grace`. A second call ends it at once.

        Messages that have not been started are left to other consumers.
        """
        self._service.stop()

    async def _serve(self) -> None:
        await startup.begin(self._dsn, self._service, self._require, group=self._group)
        await self._lifespans.open(self._service)
        if self._service.stopping:
            return
        working = [self._work(lane) for lane in self._lanes]
        loops = self._subscription.run(), self._keep_house(), self._probe.run(), self._group.watch()
        await side_by_side(self._until_quiet(), *loops, *working)

    async def _until_quiet(self) -> None:
        """Waits for a stop, and then until no message is being handled."""
        await self._service.stopped()
        for lane in self._lanes:
            lane.drop_waiting()
        await self._subscription.pause()
        await self._service.until_stop(self._all_idle(), grace=self.grace)

    async def _all_idle(self) -> None:
        for lane in self._lanes:
            await lane.idle.wait()

    def _take(self, arrival: Arrival) -> None:
        if self._service.stopping:
            return  # other consumers get it when the connection closes
        if arrival.key is None:
            min(self._lanes, key=lambda lane: lane.load).put(arrival)
        else:
            self._lanes[hash(arrival.key) % len(self._lanes)].put(arrival)

    async def _work(self, lane: _Lane) -> None:
        while True:
            arrival = await lane.next()
            # If its channel is gone, the message is delivered again, after those before it.
            if arrival.can_be_acknowledged and await lane.receiver.receive(arrival):
                killpoints.passing("K13")
                arrival.acknowledge()
            if arrival.parked is not None:
                self._retried.discard(arrival.parked)

    async def _keep_house(self) -> None:
        """Takes parked messages that a person wants to be tried again, and forgets old ids."""
        link = Link(self._dsn, "consumer", pooled=self._pooled, group=self._group)
        forget_at = 0.0
        try:
            while True:
                try:
                    await link.connection()
                    with self._group.within(PATIENCE):
                        await self._retry_parked(link)
                    if self._keep_inbox is not None and time.monotonic() >= forget_at:
                        forget_at = time.monotonic() + FORGET_EVERY
                        await forget(await link.connection(), self._keep_inbox)
                except Exception as error:
                    if temporary(error):
                        forget_at = 0.0
                    else:
                        log.error("housekeeping failed: %s", first_line(error))
                    await link.pause(error)
                await asyncio.sleep(RETRY_EVERY)
        finally:
            await link.close()

    async def _retry_parked(self, link: Link) -> None:
        rows = await link.execute(SQL["deliveries_to_retry"], {"consumer": self._handling.inbox.consumer})
        for id_, topic, body, headers, stated_id in rows:
            if id_ not in self._retried:
                self._retried.add(id_)
                self._take(Arrival(topic, body, headers, stated_id, parked=id_))

    def _say(self, trouble: str | None) -> None:
        if trouble is None:
            self._service.begin()
            log.info("consumer %s takes from queue %s", self._handling.inbox.consumer, printable(self._handling.queue))
        else:
            log.warning("%s; trying again", printable(trouble))

    def _signs(self) -> Signs:
        waiting = sum(lane.waiting for lane in self._lanes)
        busy = sum(lane.receiver.handles is not None for lane in self._lanes)
        trouble = self._trouble.now
        return Signs(
            trouble is None, self._probe.answered, PATIENCE + 2 * probe.EVERY, in_flight=busy, waiting=waiting,
            trouble=trouble,
        )  # fmt: skip

    def _require(self, conn: psycopg.Connection[Any]) -> None:
        if self._pooled:
            require_pooled(conn)
        migrations.require(conn)


def _connections(dsn: AnyDsn | None, amqp_url: str | Sequence[str] | None) -> tuple[Dsn, str, bool]:
    """Returns the DSN, the AMQP URLs, and whether the DSN leads through a pooler."""
    if amqp_url is not None and not isinstance(amqp_url, str):
        amqp_url = ",".join(amqp_url)
    found = settings.load(dsn=dsn if isinstance(dsn, str) else None, amqp_url=amqp_url)
    chosen = found.database[1] if dsn is None and found.database else dsn
    if chosen is None:
        raise SettingsError("which database? Give dsn, or set OUTBOX_DSN or DATABASE_URL")
    if not found.amqp_url:
        raise SettingsError("which broker? Give amqp_url, or set OUTBOX_AMQP_URL, such as amqp://localhost/")
    # A consumer doesn't listen, but if workers need a separate DSN to listen, this DSN leads through a pooler.
    first, _, pooled = both(chosen, found.listen_dsn)
    return first, found.amqp_url, pooled


class _Lane:
    """A queue of messages that are handled one after the other."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.idle = asyncio.Event()
        self._waiting: asyncio.Queue[Arrival] = asyncio.Queue()

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self._waiting.qsize()

    @property
    def load(self) -> int:
        """How many messages wait or are being handled."""
        return self._waiting.qsize() + (not self.idle.is_set())

    def put(self, arrival: Arrival) -> None:
        """Adds a message at the end of the queue."""
        self._waiting.put_nowait(arrival)

    def drop_waiting(self) -> None:
        """Drops all waiting messages. The broker still has them."""
        while not self._waiting.empty():
            self._waiting.get_nowait()

    async def next(self) -> Arrival:
        """Returns the next message, after the previous one has been handled."""
        self.idle.set()
        arrival = await self._waiting.get()
        self.idle.clear()
        return arrival
