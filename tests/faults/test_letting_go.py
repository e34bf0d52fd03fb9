"""Processes leave a server that hangs, that is read-only now, or whose commits wait for a standby that is lost.

On a pair of servers, in this process. What is checked is where sessions are, and the books: each effect once, on the
server that is the primary in the end. Where another server was promoted, patience has no end: that it is the primary must
be reason enough.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from kit.broker import channel
from kit.databases import OWNER, make_database
from kit.letters import post, uuid7
from kit.pipelines import value
from kit.replication import Pair
from kit.servers import DEADLINE, PostgresServer, freeze, wait_for
from outbox import Backoff, Consumer, Delivery, Pipeline, Run, Tick, Worker
from outbox.database import connection_group, migrations, probe
from outbox.database.connection_group import READ_ONLY
from outbox.database.link import Link
from outbox.definition import deploy
from outbox.messages import log as logs
from outbox.messages import relay as relays
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay
from outbox.messages.target import Outgoing, Parked, Target

Conn = psycopg.Connection[Any]

LEASE = 2.0
PATIENT = 3600.0
"""Seconds that no test takes: as a lease or as patience, it is never over."""

OURS = "FROM pg_stat_activity WHERE application_name LIKE 'outbox %' AND datname = current_database()"


class Place:
    """A database of a test's own on a pair of servers."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.pair, self.name = pair, name

    @property
    def hosts(self) -> str:
        return self.pair.hosts(self.name, OWNER)

    @property
    def moving(self) -> str:
        return self.pair.dsn(self.name, OWNER)

    def admin(self, server: PostgresServer | None = None) -> Conn:
        conn = (server or self.pair.primary).admin(self.name)
        conn.execute("SET synchronous_commit = local")  # a test itself waits for no standby
        return conn

    def ask(self, question: str, *params: Any, server: PostgresServer | None = None) -> Any:
        with self.admin(server) as conn:
            return value(conn, question, *params)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair() as pair:
        migrations.apply(make_database(pair.primary, "migrated"))
        yield pair


_numbers = itertools.count(1)


@pytest.fixture
def place(pair: Pair) -> Place:
    """A migrated database on a pair that is well."""
    if not pair.standby.running or pair.standby in pair._frozen:
        pair.rejoin()
    place = Place(pair, f"place_{next(_numbers)}")
    with pair.primary.admin() as conn:
        conn.execute(f"CREATE DATABASE {place.name} TEMPLATE migrated")
    with place.admin() as conn:
        conn.execute(f"SET ROLE {OWNER}; CREATE TABLE outbox.witness (entity text, stage text)")
    return place


class Work:
    """A pipeline of a plain stage and two in transactions of their own; the gate holds up handlers of some stages."""

    def __init__(self, *gated: str) -> None:
        self.gate, self.gated, self.at_gate = threading.Event(), gated, 0
        self.pipeline: Pipeline[Any] = Pipeline("p", initial="A", final={"DONE"})
        self.pipeline.stage("plain", on="A", to="B")(self.plain)
        self.pipeline.stage("in_loop", on="B", to="C", transaction=True)(self.in_loop)
        self.pipeline.stage("in_thread", on="C", to="DONE", transaction=True)(self.in_thread)

    async def plain(self, run: Run[Any]) -> None:
        run.publish("t", {"entity": run.entity_id})

    async def in_loop(self, run: Run[Any]) -> None:
        await run.connection.execute("INSERT INTO outbox.witness VALUES (%s, 'in_loop')", (run.entity_id,))
        await asyncio.to_thread(self._wait, "in_loop")
        await run.connection.execute("SELECT 1")

    def in_thread(self, run: Run[Any]) -> None:
        run.connection.execute("INSERT INTO outbox.witness VALUES (%s, 'in_thread')", (run.entity_id,))
        self._wait("in_thread")
        run.connection.execute("SELECT 1")

    def _wait(self, stage: str) -> None:
        if stage in self.gated and not self.gate.is_set():
            self.at_gate += 1
            self.gate.wait(DEADLINE)

    def submit(self, place: Place, *entities: str) -> None:
        with place.admin() as conn:
            self.pipeline.submit_many(conn, ((entity, {}) for entity in entities))

    def deploy(self, place: Place) -> Work:
        with place.admin() as conn:
            deploy.deploy(conn, self.pipeline)
        return self


def all_done(place: Place, count: int) -> bool:
    return bool(place.ask("SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == count)


def check(place: Place, count: int) -> None:
    """Each effect once, and each history without a gap or a repetition."""
    with place.admin() as conn:
        found = conn.execute("SELECT count(*), count(DISTINCT (entity, stage)) FROM outbox.witness").fetchone()
        assert found == (2 * count, 2 * count)
        histories = conn.execute(
            "SELECT string_agg(to_status, '' ORDER BY version) FROM outbox.state_changes GROUP BY workflow_id"
        )
        assert histories.fetchall() == [("ABCDONE",)] * count


@asynccontextmanager
async def running(*services: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(service.run()) for service in services]
    try:
        yield
    finally:
        for service in services:
            service.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)


async def until(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what=what)


def test_what_was_let_go_of_can_commit_nothing_that_counts(place: Place) -> None:
    """Only the sessions of one worker hang. Another one has taken over when they go on, with a COMMIT that waits there."""
    work = Work("in_loop").deploy(place)
    work.submit(place, "e1", "e2", "e3")

    async def main() -> None:
        async with running(Worker(work.pipeline, place.hosts, lease=LEASE, grace=1)):
            await until(lambda: work.at_gate == 3, "the handlers are in the middle of their transactions")
            await until(lambda: not place.ask(f"SELECT count(*) {OURS} AND state = 'active'"), "none holds a latch")
            frozen = place.ask(f"SELECT array_agg(pid) {OURS}")
            for pid in frozen:
                freeze(pid)
            work.gate.set()
            await until(lambda: all_done(place, 3), "the worker has let go of them, and begun again")
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
            there = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s::int[])"
            await until(lambda: not place.ask(there, frozen), "they have gone on, and ended")

    asyncio.run(main())
    check(place, 3)


class Kept(Target):
    """A target that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("kept")
        self.entities: list[str] = []

    async def deliver(self, messages: Sequence[Outgoing], stopped_keys: set[str]) -> Parked:
        self.entities += [json.loads(message.payload or "{}")["entity"] for message in messages]
        return {}

    async def close(self) -> None: ...


def test_a_worker_and_a_relay_leave_a_frozen_primary_for_the_one_that_was_promoted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is in the middle of transactions, in its loop and in threads. The relay knows only the name that moves."""
    monkeypatch.setattr(relays, "PATIENCE", PATIENT)
    monkeypatch.setattr(logs, "PATIENCE", PATIENT)
    work, kept = Work("in_thread").deploy(place), Kept()
    work.submit(place, "e1", "e2")

    async def main() -> None:
        worker = Worker(work.pipeline, place.hosts, lease=PATIENT, grace=1)
        async with running(worker, Relay(place.moving, kept)):
            await until(lambda: work.at_gate == 2, "two handlers are in the middle of their transactions, in threads")
            work.gated = ("in_loop", "in_thread")
            work.submit(place, "e3", "e4")
            await until(lambda: work.at_gate == 4, "so are two in the loop")
            await until(lambda: sorted(kept.entities) == ["e1", "e2", "e3", "e4"], "it relays")
            place.pair.freeze()
            work.gate.set()
            place.pair.promote()
            work.submit(place, "e5")
            await until(lambda: all_done(place, 5), "all is done on the other server")
            await until(lambda: "e5" in kept.entities, "it relays from the other server")

    asyncio.run(main())
    check(place, 5)


def test_a_handoff_leaves_a_frozen_primary(place: Place, dsn: str, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's own server is well; the one that it hands on to hangs, with a transaction in the middle."""
    work = Work().deploy(place)
    held = place.admin()
    write = "INSERT INTO outbox.messages (topic, key, payload) VALUES ('t', %s, '{}')"

    async def main() -> None:
        monkeypatch.setattr(probe, "EVERY", 0.1)
        target = Handoff(place.hosts, "p")
        monkeypatch.setattr(target._probe, "_patience", PATIENT)
        async with running(Relay(dsn, target)):
            conn.execute(write, ("e1",))
            await until(lambda: place.ask("SELECT count(*) FROM outbox.workflow_states") == 1, "it hands on")
            held.execute("BEGIN; LOCK TABLE outbox.workflow_states IN SHARE MODE")
            conn.execute(write, ("e2",))
            waits = f"SELECT count(*) {OURS} AND wait_event_type = 'Lock'"
            await until(lambda: place.ask(waits), "it waits for a lock")
            await asyncio.sleep(1.5)
            assert place.ask(waits) == 1, "which is no reason to leave: the server answers"
            place.pair.freeze()
            place.pair.promote()
            await until(
                lambda: place.ask("SELECT count(*) FROM outbox.workflow_states") == 2, "it hands on to the other"
            )

    asyncio.run(main())
    assert place.ask("SELECT count(DISTINCT entity_id) FROM outbox.workflow_states") == 2
    held.close()
    assert work


def test_what_connects_to_a_server_that_is_read_only_now_goes_on_to_the_primary(place: Place) -> None:
    """After a switchover behind a name, the name leads to the old server for a while."""
    work, kept, ticks = Work(), Kept(), []

    @work.pipeline.every("* * * * * *")
    def tick(tick: Tick) -> None:
        ticks.append(tick.connection.info.port)

    work.deploy(place)
    work.submit(place, "e1")

    async def main() -> None:
        worker, relay = Worker(work.pipeline, place.moving, lease=LEASE), Relay(place.moving, kept)
        async with running(worker, relay):
            await until(lambda: kept.entities == ["e1"] and all_done(place, 1) and ticks, "they are at work")
            await asyncio.to_thread(place.pair.switch, move=False)
            work.submit(place, "e2")
            await asyncio.sleep(1)  # they have connected to the old one meanwhile, if they do
            place.pair.move()
            before = len(ticks)
            await until(lambda: kept.entities == ["e1", "e2"] and all_done(place, 2), "they are at work again")
            await until(lambda: len(ticks) > before, "so are the schedules")
            assert place.ask(f"SELECT count(*) {OURS}", server=place.pair.standby) == 0

    asyncio.run(main())
    check(place, 2)


def read_only(place: Place, setting: str) -> None:
    place.pair.primary.configure(default_transaction_read_only=setting)
    place.pair.primary.send(signal.SIGHUP)
    wait_for(lambda: place.ask("SHOW default_transaction_read_only") == setting, what="the setting is taken")


def test_sessions_leave_a_server_that_becomes_read_only_under_them(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing cuts them, and some only read: they would stay for ever."""
    work, kept = Work(), Kept()
    work.pipeline.every("0 0 1 1 *", name="yearly")(lambda tick: None)
    work.deploy(place)
    work.submit(place, "e1")

    async def main() -> None:
        async with running(Worker(work.pipeline, place.hosts, lease=LEASE), Relay(place.hosts, kept)):
            await until(lambda: kept.entities == ["e1"] and all_done(place, 1), "they are at work")
            read_only(place, "on")
            await until(lambda: READ_ONLY in caplog.text, "they say why they don't come back")
            await until(lambda: not place.ask(f"SELECT count(*) {OURS}"), "no session stays")
            read_only(place, "off")
            work.submit(place, "e2")
            await until(lambda: kept.entities == ["e1", "e2"] and all_done(place, 2), "they are at work again")

    asyncio.run(main())
    check(place, 2)


def test_sessions_that_wait_for_a_lost_standby_are_bounded(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each that is let go of stays on the server until the standby is back. Then all goes on by itself."""
    monkeypatch.setattr(connection_group, "MOST_LEFT", 3)
    monkeypatch.setattr(connection_group, "ASK_EVERY", 0.1)
    work = Work("in_loop").deploy(place)
    work.submit(place, "e1", "e2", "e3")
    most, gave_up = 0, "more are opened until they have ended"

    async def main() -> None:
        nonlocal most
        async with running(Worker(work.pipeline, place.hosts, lease=1.0, grace=1)):
            await until(lambda: work.at_gate == 3, "the handlers are in the middle of their transactions")
            place.pair.detach()
            work.gate.set()
            await until(lambda: caplog.text.count(gave_up) >= 8, "it has asked many times whether they are gone")
            most = place.ask(f"SELECT count(*) {OURS}")
            place.pair.attach()
            await until(lambda: all_done(place, 3), "all goes on")

    asyncio.run(main())
    assert 3 <= most <= 12
    check(place, 3)


def test_consumers_leave_a_server_that_is_read_only_and_one_that_is_frozen(
    place: Place, amqp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One handles messages in its loop and knows the hosts; the other one in threads, and knows the name that moves."""
    monkeypatch.setattr(probe, "EVERY", 0.1)
    at_work: set[str] = set()
    go_on = threading.Event()
    insert = "INSERT INTO outbox.witness VALUES (%s, %s)"

    async def in_loop(delivery: Delivery) -> None:
        await delivery.connection.execute(insert, (delivery.payload["n"], "in_loop"))
        at_work.add("in_loop")
        await asyncio.to_thread(go_on.wait, DEADLINE)
        await delivery.connection.execute("SELECT 1")

    def in_thread(delivery: Delivery) -> None:
        delivery.connection.execute(insert, (delivery.payload["n"], "in_thread"))
        at_work.add("in_thread")
        go_on.wait(DEADLINE)
        delivery.connection.execute("SELECT 1")

    handlers = {"in_loop": (in_loop, place.hosts), "in_thread": (in_thread, place.moving)}

    def send(n: int) -> None:
        for queue in handlers:
            post(amqp, (uuid7(), {"n": n}), queue=queue)

    def have_had_effect(n: int) -> bool:
        return bool(place.ask("SELECT count(*) FROM outbox.witness") == n * len(handlers))

    async def main() -> None:
        consumers = [
            Consumer(queue, handler, dsn=dsn, amqp_url=amqp, retry=Backoff(attempts=1))
            for queue, (handler, dsn) in handlers.items()
        ]
        for consumer in consumers:
            monkeypatch.setattr(consumer._probe, "_patience", PATIENT)
        go_on.set()
        async with running(*consumers):
            send(1)
            await until(lambda: have_had_effect(1), "they are at work")
            read_only(place, "on")
            send(2)
            await until(lambda: not place.ask(f"SELECT count(*) {OURS}"), "no session stays")
            read_only(place, "off")
            await until(lambda: have_had_effect(2), "they go on, and their only attempt is not lost")
            at_work.clear()
            go_on.clear()
            send(3)
            await until(lambda: at_work == set(handlers), "the handlers are in the middle of their transactions")
            place.pair.freeze()
            go_on.set()
            place.pair.promote()
            await until(lambda: have_had_effect(3), "it is handled on the other server")

    with channel(amqp) as opened:
        for queue in handlers:
            opened.queue_declare(queue, durable=True)
    asyncio.run(main())
    assert place.ask("SELECT count(DISTINCT (entity, stage)) FROM outbox.witness") == 6
    assert place.ask("SELECT count(*) FROM outbox.parked_deliveries") == 0


def test_all_sessions_of_a_process_lead_to_one_server(place: Place, dsn: str) -> None:
    """Where a name leads to another server now, what it has led to before is not believed any more."""

    async def main() -> None:
        together = connection_group.ConnectionGroup()
        before, after = Link(dsn, "test", group=together), Link(place.hosts, "test", group=together)
        waiting = asyncio.create_task(before.execute(b"SELECT pg_sleep(5)", {}))
        while not before.is_open:
            await asyncio.sleep(0.01)
        await after.execute(b"SELECT 1", {})
        with pytest.raises(psycopg.OperationalError):
            await waiting
        await after.close()

    asyncio.run(main())
