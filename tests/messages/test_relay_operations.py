"""A relay in operation, with real processes: restored databases, several names, what is parked, an open transaction."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.broker import Broker, queue_depth
from kit.commands import Outbox
from kit.databases import OWNER
from kit.deliveries import bind, check_order, first_of_each, give_up, take, write
from kit.pipelines import value
from kit.pooler import direct
from kit.servers import PostgresServer, Process, wait_for
from outbox import Backoff, Consumer, Delivery
from outbox.database import migrations
from outbox.messages import ring

Conn = psycopg.Connection[Any]
Start = Callable[..., Process]
MESSAGE = "INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, 'k', jsonb_build_object('n', %s::int))"


@pytest.fixture
def start(spawn: Callable[..., Process], amqp: str) -> Start:
    """Start `outbox relay` to the exchange x of the test's own virtual host."""

    def start(*options: str, url: str = amqp, **env: str) -> Process:
        return spawn("relay", "--exchange", "x", *options, env={"OUTBOX_AMQP_URL": url, **env})

    return start


def passed(conn: Conn, name: str = "default") -> bool:
    """Whether a relay has passed every message that is there."""
    return bool(
        value(conn, "SELECT r.window_end IS NULL AND NOT EXISTS (SELECT FROM outbox.messages m "
                    "WHERE NOT pg_visible_in_snapshot(m.xid, r.window_start)) FROM outbox.relays r WHERE r.name = %s", name)
    )  # fmt: skip


def ns(deliveries: list[tuple[Any, dict[str, Any]]]) -> list[int]:
    return [payload["n"] for _, payload in deliveries]


# Restored databases.


def database(server: PostgresServer, name: str) -> str:
    """Make an empty database; return its DSN as superuser."""
    with server.admin() as admin:
        if not value(admin, "SELECT count(*) FROM pg_roles WHERE rolname = %s", OWNER):
            admin.execute(f"CREATE ROLE {OWNER} LOGIN".encode())
        admin.execute(f"CREATE DATABASE {name}".encode())
    return server.dsn(name)


def program(server: PostgresServer, name: str, *arguments: str) -> None:
    done = subprocess.run([server.bin / name, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def dump(server: PostgresServer, dsn: str, folder: Path) -> str:
    program(server, "pg_dump", "--format=custom", f"--file={folder / 'dump'}", f"--dbname={dsn}")
    return str(folder / "dump")


def restore(server: PostgresServer, file: str) -> str:
    dsn = database(server, "restored")
    program(server, "pg_restore", "--exit-on-error", f"--dbname={dsn}", file)
    return dsn


def cluster(conn: Conn) -> str:
    return str(value(conn, "SELECT system_identifier::text FROM pg_control_system()"))


def relay_half(conn: Conn, start: Start, url: str, dsn: str) -> set[int]:
    """Write 1500 messages and have a relay killed in the middle of a window; return what has arrived."""
    write(conn, 1500)
    victim = start("--strict", OUTBOX_KILL_AT="K10:4", **direct(dsn))
    assert victim.wait() == -signal.SIGKILL, victim.text()
    assert value(conn, "SELECT window_end IS NOT NULL AND position > 0 FROM outbox.relays")
    arrived = set(ns(take(url)))
    assert 0 < len(arrived) < 1500
    write(conn, 100, first=1500)
    return arrived


def relay_the_rest(dsn: str, start: Start, url: str, arrived: set[int]) -> str:
    """Relay what a restored database has and then what is new; nothing is missing. Returns what the relay says."""
    heir = start("--strict", "--drain", **direct(dsn))
    assert heir.wait() == 0, heir.text()
    deliveries = take(url)
    assert arrived | set(ns(deliveries)) == set(range(1600)), "every message has arrived"
    check_order(deliveries)
    with psycopg.connect(dsn, autocommit=True) as conn:
        write(conn, 10, first=1600)
    assert start("--strict", "--drain", **direct(dsn)).wait() == 0
    assert ns(take(url)) == list(range(1600, 1610)), "new messages arrive, and no other once more"
    return heir.text()


def test_a_dump_restored_on_another_server_is_relayed_there_without_loss(
    conn: Conn, dsn: str, admin_dsn: str, server: PostgresServer, make_server: Callable[[str], PostgresServer],
    start: Start, amqp: str, tmp_path: Path,
) -> None:  # fmt: skip
    bind(amqp)
    arrived = relay_half(conn, start, amqp, dsn)
    other = make_server(server.version)
    restored = restore(other, dump(server, admin_dsn, tmp_path))
    with psycopg.connect(restored) as there:
        assert cluster(there) != cluster(conn)
    said = relay_the_rest(restored, start, amqp, arrived)
    assert said.count("the database was restored: every message in the log is relayed") == 1


@pytest.mark.parametrize("what", ["a newer dump", "the database itself"])
def test_an_older_state_of_the_server_is_relayed_without_loss(
    what: str, server: PostgresServer, make_server: Callable[[str], PostgresServer], start: Start, amqp: str, tmp_path: Path
) -> None:  # fmt: skip
    bind(amqp)
    made = make_server(server.version)
    dsn = database(made, "app")
    migrations.apply(dsn)

    def take_a_copy() -> None:
        made.stop("fast")
        subprocess.run(["cp", "-a", made.data, made.folder / "copy"], check=True)
        made.start()

    def put_the_copy_back() -> None:
        made.stop("fast")
        subprocess.run(["rm", "-r", made.data], check=True)
        subprocess.run(["mv", made.folder / "copy", made.data], check=True)  # it may be another file system
        made.start()

    if what == "a newer dump":
        take_a_copy()
        with psycopg.connect(dsn, autocommit=True) as conn:
            # So many transactions that the restored server takes a while to come to the numbers that the dump has.
            conn.execute("DO $$ BEGIN FOR n IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
            arrived = relay_half(conn, start, amqp, dsn)
            before = cluster(conn)
        file = dump(made, dsn, tmp_path)
        put_the_copy_back()
        restored = restore(made, file)
        with psycopg.connect(restored) as conn:
            assert cluster(conn) == before
            assert value(
                conn, "SELECT pg_snapshot_xmax(window_end) > pg_snapshot_xmax(pg_current_snapshot()) FROM outbox.relays"
            )
        said = relay_the_rest(restored, start, amqp, arrived)
        assert said.count("the database was restored") == 1
    else:
        with psycopg.connect(dsn, autocommit=True) as conn:
            arrived = relay_half(conn, start, amqp, dsn)
        take_a_copy()
        assert start("--drain", **direct(dsn)).wait() == 0
        with psycopg.connect(dsn, autocommit=True) as conn:
            write(conn, 50, first=5000)
        assert start("--drain", **direct(dsn)).wait() == 0
        take(amqp)
        put_the_copy_back()
        relay_the_rest(dsn, start, amqp, arrived)


# Several names.


def sizes(conn: Conn) -> list[int]:
    return [value(conn, f"SELECT count(*) FROM outbox.messages_{n}") for n in range(4)]


def turn(conn: Conn, child: int) -> None:
    """Let the next message open a child of the ring."""
    conn.execute("SELECT setval('outbox.message_ids', %s::bigint * 1000000, false)", [child])


def rotate(dsn: str) -> dict[str, str]:
    async def once() -> dict[str, str]:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            return await ring.rotate(conn)

    return asyncio.run(once())


def test_relays_of_two_names_each_get_every_message_and_the_log_waits_for_the_slower_one(
    conn: Conn, dsn: str, start: Start, broker: Broker, amqp: str
) -> None:
    other = broker.new_url()
    bind(amqp)
    bind(other)
    start("--name", "a")
    slow = start("--name", "b", url=other)
    write(conn, 50)
    wait_for(lambda: passed(conn, "a") and passed(conn, "b"), what="both relay")
    slow.freeze()
    write(conn, 50, first=50)
    turn(conn, 1)
    write(conn, 50, first=100)
    wait_for(lambda: passed(conn, "a"), what="one doesn't wait for the other")
    assert not passed(conn, "b")
    assert ns(take(amqp)) == list(range(150))
    assert rotate(dsn) == {}
    assert sizes(conn) == [100, 50, 0, 0], "the slower one has not passed it"
    slow.send(signal.SIGCONT)
    wait_for(lambda: passed(conn, "b"), what="the slower one catches up")
    assert first_of_each(take(other)) == list(range(150))
    wait_for(lambda: sizes(conn) == [0, 50, 0, 0], what="the log is emptied behind both")


def test_a_name_without_a_relay_keeps_the_log_until_it_is_forgotten(
    conn: Conn, outbox: Outbox, start: Start, amqp: str
) -> None:
    bind(amqp)
    assert start("--name", "old", "--drain").wait() == 0
    relay = start()
    write(conn, 50)
    turn(conn, 1)
    write(conn, 50, first=50)
    wait_for(lambda: passed(conn), what="the other one has relayed all")
    running = {"default": True, "old": False}
    wait_for(lambda: {row["name"]: row["running"] for row in outbox("status", "--json").json["relays"]} == running)
    assert "outbox relay --forget old" in outbox("doctor", code=None).out
    assert sizes(conn) == [50, 50, 0, 0]
    assert "is running" in outbox.fails("relay", "--forget", "default")
    assert outbox("relay", "--forget", "old").out == "relay old is forgotten, with 0 parked messages\n"
    wait_for(lambda: sizes(conn) == [0, 50, 0, 0], what="the log is emptied")
    assert "--forget" not in outbox("doctor", code=None).out
    assert relay.running


def test_a_relay_whose_row_is_deleted_while_it_runs_begins_again(conn: Conn, start: Start, amqp: str) -> None:
    bind(amqp)
    relay = start()
    write(conn, 5)
    wait_for(lambda: passed(conn))
    conn.execute("DELETE FROM outbox.relays")
    write(conn, 5, first=5)
    wait_for(lambda: passed(conn), what="it has registered itself again")
    assert first_of_each(take(amqp)) == list(range(10))
    assert relay.running


# What is parked.


def test_a_parked_message_that_fails_again_waits_with_its_new_reason(
    conn: Conn, outbox: Outbox, start: Start, amqp: str
) -> None:
    bind(amqp, "t.#")
    conn.execute(MESSAGE, ("elsewhere", 1))
    assert start("--drain").wait() == 0
    (before,) = outbox("parked", "--json").json
    assert "unroutable" in before["reason"]
    assert "routing key 'elsewhere'" in before["reason"]
    outbox("parked", "--retry")
    again = start("--drain", "--routing-key", "v2.{topic}")
    assert again.wait() == 0
    assert "0 parked messages relayed, 1 parked again" in again.text()
    give_up(conn)
    (after,) = outbox("parked", "--json").json
    assert "routing key 'v2.elsewhere'" in after["reason"]
    assert (after["message_id"], after["retry"]) == (before["message_id"], False)
    assert after["parked_at"] > before["parked_at"]
    bind(amqp, "elsewhere")
    assert start("--drain").wait() == 0
    assert take(amqp) == [], "it waits for a person"
    outbox("parked", "--retry")
    assert start("--drain").wait() == 0
    assert ns(take(amqp)) == [1]
    assert outbox("parked").out == "no message is parked\n"


def test_in_strict_mode_a_retried_message_waits_for_earlier_ones_of_its_key(
    conn: Conn, outbox: Outbox, start: Start, amqp: str
) -> None:
    bind(amqp, "t.#")
    for n, topic in enumerate(("elsewhere", "t.1", "t.2")):
        conn.execute(MESSAGE, (topic, n))
    relay = start("--strict")
    wait_for(lambda: passed(conn))
    give_up(conn)
    first, second, third = [row["id"] for row in outbox("parked", "--json").json]
    outbox("parked", "--retry", str(second))
    conn.execute(MESSAGE, ("t.3", 3))
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.parked_messages") == 4, what="the new one queues behind")
    assert queue_depth(amqp, "q") == 0
    bind(amqp, "elsewhere")
    outbox("parked", "--retry", str(first))
    wait_for(lambda: [row["id"] for row in outbox("parked", "--json").json][:1] == [third], what="two have gone out")
    assert ns(take(amqp)) == [0, 1]
    outbox("parked", "--retry")
    wait_for(lambda: not outbox("parked", "--json").json)
    conn.execute(MESSAGE, ("t.4", 4))
    wait_for(lambda: passed(conn))
    assert ns(take(amqp)) == [2, 3, 4]
    assert relay.running


def test_what_a_consumer_has_parked_is_handled_when_a_person_wants_it_tried_again(
    conn: Conn, dsn: str, outbox: Outbox, start: Start, amqp: str
) -> None:
    conn.execute("CREATE TABLE outbox.witness (n int)")
    well = False

    async def handler(delivery: Delivery) -> None:
        if not well:
            raise ValueError("no such customer")
        await delivery.connection.execute("INSERT INTO outbox.witness VALUES (%s)", [delivery.payload["n"]])

    async def run() -> None:
        nonlocal well
        consumer = Consumer(
            "q",
            handler,
            consumer="crm",
            dsn=dsn,
            amqp_url=amqp,
            exchange="x",
            topics=["t.#"],
            retry=Backoff(attempts=1),
        )
        running = asyncio.create_task(consumer.run())
        await asyncio.to_thread(wait_for, lambda: outbox("parked", "--json").json, what="it is parked")
        (parked,) = outbox("parked", "--json").json
        assert (parked["consumer"], parked["topic"], parked["key"]) == ("crm", "t.1", "k")
        assert parked["message_id"] == str(value(conn, "SELECT message_id FROM outbox.messages"))
        assert "no such customer" in parked["reason"]
        well = True
        assert outbox("parked", "--retry", str(parked["id"])).out == "1 messages are tried again\n"
        await asyncio.to_thread(wait_for, lambda: not outbox("parked", "--json").json, what="it is handled")
        consumer.stop()
        await running

    bind(amqp, "t.#")
    conn.execute(MESSAGE, ("t.1", 1))
    assert start("--drain").wait() == 0
    asyncio.run(run())
    assert value(conn, "SELECT array_agg(n) FROM outbox.witness") == [1]
    assert queue_depth(amqp, "q") == 0
    assert outbox.fails("parked", "--retry", "1") == "outbox: no message with the id 1 is parked"


# A transaction that stays open.


def test_a_transaction_that_stays_open_holds_up_its_own_messages_and_one_child_of_the_ring(
    conn: Conn, connect: Callable[..., Conn], start: Start, amqp: str
) -> None:
    bind(amqp)
    relay = start()
    write(conn, 20)
    open_ = connect(autocommit=False)
    open_.execute(MESSAGE, ("late", 1000))
    for lap, child in enumerate((1, 2, 3, 4), start=1):
        turn(conn, child)
        write(conn, 20, first=20 * lap)
        wait_for(lambda: passed(conn), what="the others don't wait")
    assert first_of_each(take(amqp)) == list(range(100))
    turn(conn, 5)
    write(conn, 20, first=100)
    wait_for(lambda: sizes(conn)[2:] == [0, 0], what="the others' children are emptied")
    assert sizes(conn)[0] == 40
    wait_for(lambda: "outbox.messages_0 can't be emptied: a transaction that writes" in relay.text())
    write(conn, 20, first=120)
    wait_for(lambda: passed(conn))
    open_.commit()
    wait_for(lambda: passed(conn))
    assert first_of_each(take(amqp)) == [*range(100, 140), 1000]
    wait_for(lambda: sizes(conn)[0] == 0, what="and when it ends, its own")
    assert relay.text().count("outbox.messages_0 can't be emptied") == 1, "said once, not every few seconds"
