"""The inbox: the first delivery of a message is told from all others, in any session and at any time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from kit.databases import OWNER
from kit.inbox import forget, made
from kit.pipelines import value
from kit.servers import DEADLINE, PostgresServer
from outbox import DefinitionError, Inbox, InvalidInput, TooNew, TooOld
from outbox.database import migrations
from outbox.engine import maintenance
from outbox.engine.inflight import InFlight
from outbox.engine.lane import Lanes
from outbox.engine.maintenance import Maintenance
from outbox.engine.retention import Retention

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
crm = Inbox("crm")


def children(conn: Conn) -> set[str]:
    """The children that hold anything."""
    found = conn.execute("SELECT DISTINCT tableoid::regclass::text FROM outbox.inbox").fetchall()
    return {row[0].removeprefix("outbox.") for row in found}


# First time, or duplicate.


def test_first_delivery_is_new_and_every_later_one_is_a_duplicate(conn: Conn) -> None:
    first, second = made(), made()
    assert [crm.accept(conn, id) for id in (first, first, second, str(first).upper(), second)] == [
        True, False, True, False, False
    ]  # fmt: skip
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 2


def test_async_connection_gives_the_same_answers(dsn: str, conn: Conn) -> None:
    message = made()

    async def twice() -> list[bool]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            return [await crm.accept(connection, message), await crm.accept(connection, str(message))]

    assert asyncio.run(twice()) == [True, False]
    assert not crm.accept(conn, message), "and committed it"


def test_consumers_are_independent_and_a_name_is_enough(conn: Conn) -> None:
    message = made()
    assert [Inbox(name).accept(conn, message) for name in ("crm", "mail", "crm", "mail", "CRM")] == [
        True, True, False, False, True
    ]  # fmt: skip


def test_ids_that_the_engine_makes_are_taken(conn: Conn) -> None:
    conn.execute("INSERT INTO outbox.messages (topic) VALUES ('a')")
    message = value(conn, "SELECT message_id FROM outbox.messages")
    assert crm.accept(conn, message)
    assert not crm.accept(conn, message)


def test_rolled_back_record_is_forgotten(conn: Conn) -> None:
    message = made()
    with conn.transaction() as transaction:
        assert crm.accept(conn, message)
        assert not crm.accept(conn, message)
        raise psycopg.Rollback(transaction)
    assert crm.accept(conn, message)


def test_other_messages_and_other_consumers_do_not_wait(connect: Connect) -> None:
    message = made()
    first, second = connect(autocommit=False), connect(autocommit=False)
    assert crm.accept(first, message)
    second.execute("SET statement_timeout = '120s'")
    assert crm.accept(second, made())
    assert Inbox("mail").accept(second, message)


def test_of_many_at_once_exactly_one_is_first(connect: Connect) -> None:
    ids = [made(days) for days in (0, 1, 8, 30)] * 2
    start = threading.Barrier(8)

    def consume(conn: Conn) -> list[UUID]:
        start.wait(DEADLINE)
        taken = []
        for message in ids:
            with conn.transaction():
                if crm.accept(conn, message):
                    taken.append(message)
        return taken

    connections = [connect() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        taken = [message for found in pool.map(consume, connections) for message in found]
    assert sorted(taken) == sorted(set(ids))


# Days.


def test_duplicate_meets_its_child_however_late_it_comes(conn: Conn) -> None:
    """The time inside the id decides, and no two weeks in a row share a child: 32 weeks, and around."""
    ids = [made(7 * week) for week in range(32)]
    assert [crm.accept(conn, id) for id in ids] == [True] * 32
    assert len(children(conn)) == 32
    around = [made(7 * 32), made(7 * 64), made(7 * 65 + 3)]
    assert [crm.accept(conn, id) for id in around] == [True] * 3
    assert len(children(conn)) == 32
    assert [crm.accept(conn, id) for id in ids + around] == [False] * 35


@pytest.mark.parametrize(
    "day", [datetime(2026, 1, 1, tzinfo=UTC), datetime(2025, 2, 28, 23, 59, 59, 999000, tzinfo=UTC)]
)
def test_first_and_last_moment_of_a_day(conn: Conn, day: datetime) -> None:
    ids = [made(at=day + timedelta(milliseconds=n)) for n in (-1, 0, 1)]
    assert [crm.accept(conn, id) for id in [*ids, *ids]] == [True] * 3 + [False] * 3


def test_works_on_a_database_with_only_migrate_run(empty_dsn: str) -> None:
    migrations.apply(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        ids = [made(), made(-0.9), made(400)]
        assert [crm.accept(conn, id) for id in [*ids, *ids]] == [True] * 3 + [False] * 3


def test_a_role_that_may_only_insert_can_use_it(server: PostgresServer, dsn: str, admin_dsn: str) -> None:
    role = f"guest_{uuid4().hex[:8]}"
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN".encode())
        admin.execute(f"GRANT USAGE ON SCHEMA outbox TO {role}; GRANT INSERT ON outbox.inbox TO {role}".encode())
        try:
            with psycopg.connect(dsn.replace(f"{OWNER}@", f"{role}@"), autocommit=True) as conn:
                message = made()
                assert [crm.accept(conn, message), crm.accept(conn, message)] == [True, False]
                with pytest.raises(TooNew):
                    crm.accept(conn, made(-30))
                for refused in (
                    "SELECT FROM outbox.inbox",
                    "SELECT setval('outbox.inbox_floor', 1)",
                    "TRUNCATE outbox.inbox_00",
                ):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        conn.execute(refused.encode())
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


# Forgetting.


@pytest.fixture
def retain(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run one turn of a worker's maintenance in which retention is due."""
    monkeypatch.setattr(maintenance, "RETAIN_EVERY", 0.0)

    def retain(**days: float | None) -> None:
        async def turn() -> None:
            one = Maintenance(dsn, InFlight(Lanes()), Retention(**days), lease=30)
            await one.tick()
            await one.close()

        asyncio.run(turn())

    return retain


Retain = Callable[..., None]


def test_what_is_forgotten_is_refused_and_leaves_no_dead_rows(conn: Conn, retain: Retain) -> None:
    old, young, new = made(45), made(29), made()
    for message in (old, young, new):
        assert crm.accept(conn, message)
    midnight = "SELECT date_trunc('day', now(), 'UTC')"
    before = value(conn, midnight)
    retain(inbox=30)
    after = value(conn, midnight)
    assert value(conn, "SELECT array_agg(message_id ORDER BY message_id) FROM outbox.inbox") == [young, new]
    with conn.transaction():
        with pytest.raises(TooOld) as refused:
            crm.accept(conn, old)
        assert not crm.accept(conn, young), "the transaction stays usable"
    assert refused.value.message_id == old
    assert refused.value.consumer == "crm"
    assert refused.value.sent_at == datetime.fromtimestamp((old.int >> 80) / 1000, UTC)
    assert refused.value.oldest in {midnight.astimezone(UTC) - timedelta(days=30) for midnight in (before, after)}
    conn.execute("SELECT pg_stat_force_next_flush()")
    deleted = "SELECT sum(n_tup_del + n_dead_tup) FROM pg_stat_user_tables WHERE relname LIKE 'inbox%'"
    assert value(conn, deleted) == 0


def test_by_default_ninety_days_are_remembered_and_none_is_for_ever(conn: Conn, retain: Retain) -> None:
    ancient = made(20_000)
    retain(inbox=None)
    assert crm.accept(conn, ancient)
    retain(inbox=None)
    assert not crm.accept(conn, ancient)
    young = made(89)
    assert crm.accept(conn, young)
    retain()
    assert not crm.accept(conn, young)
    with pytest.raises(TooOld):
        crm.accept(conn, ancient)
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 1


def test_days_of_a_child_that_is_not_all_old_are_refused_at_once_and_go_later(conn: Conn) -> None:
    """A week goes as a whole: no day of it is taken for new meanwhile."""
    monday = datetime.now(UTC) - timedelta(days=40)
    week = [made(at=monday + timedelta(days=n)) for n in range(7)]
    for message in week:
        assert crm.accept(conn, message)
    for days in range(45, 32, -1):
        forget(conn, days)
        answers = []
        for message in week:
            try:
                answers.append(crm.accept(conn, message))
            except TooOld:
                answers.append(False)
        assert answers == [False] * 7, f"after {days} days"
    forget(conn, 20)
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 0


def test_the_floor_never_goes_back(conn: Conn) -> None:
    message = made(50)
    assert crm.accept(conn, message)
    forget(conn, 30)
    forget(conn, 100)
    for inbox in (crm, Inbox("never seen")):
        with pytest.raises(TooOld):
            inbox.accept(conn, message)


def test_a_child_that_is_in_use_is_left_for_the_next_turn_and_nobody_waits_long(
    conn: Conn, connect: Connect, retain: Retain, caplog: pytest.LogCaptureFixture
) -> None:
    old, busy = made(60), made(45)
    assert crm.accept(conn, old)
    holder = connect(autocommit=False)
    assert crm.accept(holder, busy)
    assert crm.accept(conn, made(45.001))
    retain(inbox=30)
    assert "is old, but in use" in caplog.text
    with pytest.raises(TooOld):
        crm.accept(conn, busy)
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 1, "the other child is emptied"
    holder.commit()
    retain(inbox=30)
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 0


def test_handlers_that_hold_their_transactions_do_not_keep_old_weeks_alive(conn: Conn, connect: Connect) -> None:
    """Dropping a table of the day would need a lock on the parent, which they all hold."""
    assert crm.accept(conn, made(60))
    holder = connect(autocommit=False)
    assert crm.accept(holder, made())
    ((_, emptied),) = forget(conn, 30)
    assert emptied
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 0


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
def test_a_duplicate_that_races_with_forgetting_is_refused(
    conn: Conn, connect: Connect, level: psycopg.IsolationLevel
) -> None:
    """It has looked at the floor; the floor rises and its child is emptied; it must not find itself new."""
    message = made(60)
    assert crm.accept(conn, message)
    late = connect(autocommit=False)
    late.isolation_level = level
    late.execute("SELECT 1")
    forget(conn, 30)
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 0
    # What accept does after its look: the trigger is the second one.
    with pytest.raises(psycopg.DatabaseError) as refused:
        late.execute(
            "INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', %s) ON CONFLICT DO NOTHING", [message]
        )
    assert refused.value.sqlstate == "OB007"


def test_many_may_forget_while_many_consume(conn: Conn, connect: Connect) -> None:
    """No deadlock, and no id is ever taken twice, though the memory shrinks under the consumers."""
    days = [n / 2 for n in range(2, 120)]
    ids = [made(n) for n in days]
    start = threading.Barrier(8)

    def work(conn: Conn) -> list[UUID]:
        start.wait(DEADLINE)
        taken = []
        for message in ids:
            try:
                if crm.accept(conn, message):
                    taken.append(message)
            except TooOld:
                continue
            except psycopg.DatabaseError as error:
                if error.sqlstate != "OB007":
                    raise
        return taken

    def shrink(conn: Conn) -> list[UUID]:
        start.wait(DEADLINE)
        for keep in range(60, 1, -1):
            forget(conn, keep)
        return []

    connections = [connect() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work if n < 6 else shrink, connections[n]) for n in range(8)]
        taken = [message for one in running for message in one.result(DEADLINE)]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("days", [0, 0.5, 201, -1, "30", float("nan")])
def test_a_memory_that_the_ring_cannot_hold_is_refused(conn: Conn, days: Any) -> None:
    with pytest.raises(DefinitionError, match=r"Retention inbox: .* is not a number of days"):
        Retention(inbox=days)
    with pytest.raises(psycopg.DataError):
        forget(conn, days if days != "30" else 0)


# What is refused.

BAD_IDS: dict[str, Any] = {
    "version 4": "0b3b1ab0-4a1e-4c6b-9d1c-8a1b6a1f3c11",
    "version 1": "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    "another variant": "019aaf6c-7d2a-7f01-07c1-000000000000",
    "nil": UUID(int=0),
    "no UUID": "order 17",
    "empty": "",
    "none": None,
    "a number": 17,
    "bytes": b"019aaf6c-7d2a-7f01-a7c1-000000000000",
    "NUL": "019aaf6c-7d2a-7f01-a7c1-00000000000\0",
    "long": "0" * 100_000,
}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_what_is_no_uuid7_is_refused_before_any_sql(conn: Conn, bad: Any) -> None:
    with conn.transaction():
        with pytest.raises(InvalidInput, match=r"^message_id: ") as refused:
            crm.accept(conn, bad)
        assert refused.value.field == "message_id"
        assert len(str(refused.value)) < 300
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert crm.accept(conn, made())


def test_ids_from_the_future_are_refused(conn: Conn) -> None:
    assert crm.accept(conn, made(-0.99)), "a clock may be wrong by a time zone"
    with conn.transaction():
        for ahead in (made(-1.01), made(-400), UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")):
            with pytest.raises(TooNew) as refused:
                crm.accept(conn, ahead)
            assert refused.value.message_id == ahead
            assert refused.value.sent_at > refused.value.newest
    assert value(conn, "SELECT count(*) FROM outbox.inbox") == 1


@pytest.mark.parametrize("name", ["", "a" * 64, None, 5, "a\0b", " crm", "crm ", "ü", "\ud800"])
def test_consumer_names_are_checked(name: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^consumer "):
        Inbox(name)


def test_what_is_no_connection_is_refused(dsn: str) -> None:
    with pytest.raises(InvalidInput, match=r"^conn: "):
        crm.accept(dsn, made())  # type: ignore[call-overload]


# Any language.

PLAIN = "INSERT INTO outbox.inbox (consumer, message_id) VALUES ('crm', %s) ON CONFLICT DO NOTHING"


@pytest.fixture
def plain(conn: Conn) -> Callable[[UUID], int]:
    return lambda message: conn.execute(PLAIN, [message]).rowcount


def test_one_plain_statement_does_the_same(conn: Conn, plain: Callable[[UUID], int]) -> None:
    message = made()
    assert [plain(message), plain(message)] == [1, 0]
    assert not crm.accept(conn, message)
    forget(conn, 30)
    for bad, state in ((made(60), "OB007"), (made(-3), "OB008"), (uuid4(), "OB006")):
        with pytest.raises(psycopg.DatabaseError) as refused:
            plain(bad)
        assert refused.value.sqlstate == state
