"""The consumer: composes a queue's subscription, lanes that keep each key's order, and the receivers in them.

A message is acknowledged when its transaction has committed or it is parked. Whatever dies before that, it comes
again, and the inbox tells whether it was handled.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from .. import service, settings
from ..checks import check_number
from ..client.inbox import MEMORY_DAYS, Inbox, forget
from ..database import killpoints, migrations, statements
from ..database.dsn import engine_conninfo
from ..database.link import Link, first_line, temporary
from ..definition.outcome import Backoff
from ..errors import DefinitionError, OutboxError, SettingsError
from ..texts import printable
from .delivery import Arrival, Delivery
from .receive import Receiver, Terms

SQL = statements.load("consumer")
log = logging.getLogger("outbox.consumer")

PREFETCH = 20
RETRY_EVERY = 2.0
FORGET_EVERY = 3600.0


async def consume(queue: str, handler: Callable[[Delivery], Any], **options: Any) -> None:
    """Handle the messages of a RabbitMQ queue, each with one effect, until SIGTERM or Ctrl-C.

    The options are those of Consumer, which is for programs that have other reasons to stop.
    """
    consumer = Consumer(queue, handler, **options)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, consumer.stop)
    await consumer.run()


class Consumer:
    """Handles the messages of a queue until `stop`. Any number of processes share a queue.

    `handler` is given a Delivery, in a transaction on `delivery.connection` that also records the message's id: both
    are committed, or neither. A sync handler runs in a thread, on a sync connection. It may raise Retry(after=seconds)
    or Reject(reason); what else it raises is tried again by `retry`, and parked (see `outbox parked`) after the last
    attempt, as is at once what can't be read.

    `consumer` names what has the effect in the inbox (default: the queue's name). `dsn` and `amqp_url` default to the
    settings OUTBOX_DSN and OUTBOX_AMQP_URL. With `topics` the queue is bound to `exchange`, and both are made if
    they aren't there (durable, the exchange of type topic): before the relay's first message, or that one is parked.
    `concurrency` handles so many keys at once, the messages of a key one after the other. `timeout` (seconds) bounds an
    async handler; a sync one can't be interrupted. `grace` (seconds) is what handlers get after `stop`. Ids are
    remembered for `keep_inbox` days (None: other processes see to that); older messages are parked.
    """

    def __init__(
        self,
        queue: str,
        handler: Callable[[Delivery], Any],
        *,
        consumer: str | None = None,
        dsn: str | None = None,
        amqp_url: str | None = None,
        exchange: str = "",
        topics: Sequence[str] = (),
        concurrency: int = 1,
        retry: Backoff | None = None,
        timeout: float = 60.0,
        grace: float = 30.0,
        keep_inbox: float | None = 90.0,
    ) -> None:
        found = settings.load(dsn=dsn, amqp_url=amqp_url)
        if not found.dsn:
            raise SettingsError("which database? Give dsn, or set OUTBOX_DSN")
        if not found.amqp_url:
            raise SettingsError("which broker? Give amqp_url, or set OUTBOX_AMQP_URL, such as amqp://localhost/")
        if topics and not exchange:
            raise DefinitionError("topics are bound to an exchange: give its name")
        check_number(concurrency, "concurrency", 1, 1_000)
        check_number(timeout, "timeout", 0.001, 86_400)
        check_number(grace, "grace", 0, 86_400)
        if keep_inbox is not None:
            check_number(keep_inbox, "keep_inbox", *MEMORY_DAYS)
        try:
            from .rabbitmq.subscription import Subscription
        except ModuleNotFoundError as error:
            raise OutboxError(f'{error}. Run: pip install "outbox-engine[rabbitmq]"') from None
        self._subscription = Subscription(
            found.amqp_url, queue, exchange=exchange, topics=topics, prefetch=PREFETCH * concurrency,
            take=self._take, on_trouble=self._on_trouble,
        )  # fmt: skip
        self._terms = Terms(
            Inbox(queue if consumer is None else consumer), queue, handler, inspect.iscoroutinefunction(handler),
            retry or Backoff(first=1, factor=2, max=60), timeout, concurrency,
        )  # fmt: skip
        self._dsn, self._grace, self._keep_inbox = found.dsn, grace, keep_inbox
        # Nothing here listens: that there is another DSN for it says that this one leads through a pooler.
        self._pooled = found.listen_dsn not in (None, found.dsn)
        self._lanes = [_Lane(Receiver(found.dsn, self._terms, pooled=self._pooled)) for _ in range(concurrency)]
        self._trouble: str | None = None
        self._retried: set[int] = set()
        self._pid = os.getpid()

    async def run(self) -> None:
        """Handle what comes, until `stop`.

        SchemaError at once if the database isn't ready for this code. After that, nothing that a handler, a message,
        or a restart of Postgres or RabbitMQ does ends it.
        """
        if os.getpid() != self._pid:
            raise OutboxError("this Consumer was made before a fork; make it in the process that runs it")
        await asyncio.to_thread(self._require_database)
        working = [asyncio.create_task(self._work(lane)) for lane in self._lanes]
        others = [
            asyncio.create_task(loop)
            for loop in (self._subscription.run(), self._keep_house(), self._terms.stopping.wait())
        ]
        try:
            await asyncio.wait([*others, *working], return_when=asyncio.FIRST_COMPLETED)
            for task in (*others, *working):
                if task.done():
                    task.result()  # a loop ends only by a defect of ours, or as we are to stop
            await self._subscription.pause()
            for lane in self._lanes:
                lane.end()
            await asyncio.wait(working, timeout=self._grace)
        finally:
            await service.cancel(*others, *working)
            await self._subscription.close()
            for lane in self._lanes:
                await lane.receiver.close()
        counts = self._terms
        log.info("stopped: %s handled, %s duplicates, %s parked", counts.handled, counts.duplicates, counts.parked)

    def stop(self) -> None:
        """Take nothing more and let running handlers finish; what was not begun is for others."""
        self._terms.stopping.set()

    def _take(self, arrival: Arrival) -> None:
        if arrival.key is None:
            min(self._lanes, key=lambda lane: lane.load).put(arrival)
        else:
            self._lanes[hash(arrival.key) % len(self._lanes)].put(arrival)

    async def _work(self, lane: _Lane) -> None:
        while (arrival := await lane.next()) is not None:
            # On a channel that is gone it is delivered again, after those before it.
            if arrival.is_ours and await lane.receiver.settle(arrival):
                killpoints.passing("K13")
                arrival.acknowledge()
            if arrival.parked is not None:
                self._retried.discard(arrival.parked)

    async def _keep_house(self) -> None:
        """Take parked messages that a person wants to be tried again; forget old ids."""
        link = Link(self._dsn, "consumer", pooled=self._pooled)
        forget_at = 0.0
        try:
            while True:
                try:
                    await self._retry_parked(link)
                    if self._keep_inbox is not None and time.monotonic() >= forget_at:
                        forget_at = time.monotonic() + FORGET_EVERY
                        await forget(await link.connection(), self._keep_inbox)
                except Exception as error:
                    if temporary(error):
                        forget_at = 0.0
                    else:
                        log.error("can't keep house: %s", first_line(error))
                    await link.pause(error)
                await asyncio.sleep(RETRY_EVERY)
        finally:
            await link.close()

    async def _retry_parked(self, link: Link) -> None:
        rows = await link.execute(SQL["deliveries_to_retry"], {"consumer": self._terms.inbox.consumer})
        for id_, topic, body, headers, stated_id in rows:
            if id_ not in self._retried:
                self._retried.add(id_)
                self._take(Arrival(topic, body, headers, stated_id, parked=id_))

    def _on_trouble(self, trouble: str | None) -> None:
        if trouble is None:
            log.info("consumer %s takes from queue %s", self._terms.inbox.consumer, printable(self._terms.queue))
        elif trouble != self._trouble:
            log.warning("%s; trying again", printable(trouble))
        self._trouble = trouble

    def _require_database(self) -> None:
        with psycopg.connect(engine_conninfo(self._dsn, "check"), autocommit=True) as conn:
            migrations.require(conn)


class _Lane:
    """What is handled one after the other."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._waiting: asyncio.Queue[Arrival | None] = asyncio.Queue()
        self._busy = False

    @property
    def load(self) -> int:
        return self._waiting.qsize() + self._busy

    def put(self, arrival: Arrival) -> None:
        self._waiting.put_nowait(arrival)

    def end(self) -> None:
        """Let `next` return None, whatever waits."""
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def next(self) -> Arrival | None:
        self._busy = False
        arrival = await self._waiting.get()
        self._busy = True
        return arrival
