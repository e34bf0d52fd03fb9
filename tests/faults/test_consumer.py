"""F56: consumers that are killed, frozen and cut off, from Postgres and from RabbitMQ: each message has one effect."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kit.broker import Broker, channel, queue_depth
from kit.databases import make_database
from kit.deliveries import bind, relayed, write
from kit.letters import post, uuid7
from kit.pipelines import value
from kit.pooler import way_env
from kit.proxy import LossyProxy
from kit.servers import PostgresServer, Process, wait_for
from outbox.database import migrations

Conn = psycopg.Connection[Any]
Consume = Callable[..., Process]
OURS = f'File "{Path(migrations.__file__).parents[1]}/'
"""How a line of a traceback begins that is in the package."""
TABLES = """
    CREATE TABLE outbox.witness (id serial, n int, attempt int);
    CREATE TABLE outbox.begun (n int);
    CREATE TABLE outbox.gate (opened int);
"""


@pytest.fixture
def tables(conn: Conn) -> None:
    conn.execute(TABLES)


@pytest.fixture
def consume(dsn: str, amqp: str, tmp_path: Path) -> Iterator[Consume]:
    """Start the consumer of the queue q as a process; whatever still runs is killed."""
    started: list[Process] = []

    def consume(**env: str) -> Process:
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {**way_env(dsn), "OUTBOX_AMQP_URL": amqp, "PYTHONPATH": path, **env}
        started.append(Process(["-m", "apps.consumer"], settings, tmp_path))
        return started[-1]

    yield consume
    for process in started:
        process.end()


def ns(conn: Conn) -> list[int]:
    return [row[0] for row in conn.execute("SELECT n FROM outbox.witness ORDER BY n")]


def all_of(conn: Conn, count: int) -> Callable[[], bool]:
    return lambda: bool(value(conn, "SELECT count(DISTINCT n) FROM outbox.witness") == count)


def nothing_left(url: str) -> bool:
    return queue_depth(url, "q") == 0


def takers(url: str) -> int:
    """How many consumers the broker has for the queue."""
    with channel(url) as opened:
        return int(opened.queue_declare("q", passive=True).method.consumer_count)


def end(*consumers: Process) -> None:
    for consumer in consumers:
        consumer.send(signal.SIGTERM)
    for consumer in consumers:
        assert consumer.wait() == 0, consumer.text()
        assert OURS not in consumer.text(), "tracebacks are those of handlers"


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("relay_dies", ["K9:20", "K10:2"])
@pytest.mark.parametrize("consumer_dies", ["K13:10", "K3:10"])
def test_effects_are_messages_though_relay_and_consumer_are_killed(
    conn: Conn, consume: Consume, spawn: Callable[..., Process], amqp: str, relay_dies: str, consumer_dies: str
) -> None:
    bind(amqp, "t.#")
    write(conn, 60)
    relay = ["relay", "--exchange", "x", "--strict"]
    killed = [
        spawn(*relay, env={"OUTBOX_AMQP_URL": amqp, "OUTBOX_KILL_AT": relay_dies}),
        consume(OUTBOX_KILL_AT=consumer_dies),
    ]
    write(conn, 60, first=60)
    for process in killed:
        assert process.wait() == -signal.SIGKILL, process.text()
    heir = spawn(*relay, env={"OUTBOX_AMQP_URL": amqp})
    one, other = consume(), consume(CONCURRENCY="4")
    wait_for(lambda: relayed(conn) and all_of(conn, 120)() and nothing_left(amqp))
    end(one, other)
    assert ns(conn) == list(range(120)), "each once"
    assert heir.running


@pytest.mark.usefixtures("tables")
def test_two_consumers_that_get_the_same_messages_at_once_have_one_effect(
    conn: Conn, consume: Consume, amqp: str
) -> None:
    messages = [(uuid7(), {"n": n}) for n in range(100)]
    one, other = consume(CONCURRENCY="8"), consume(CONCURRENCY="8")
    wait_for(lambda: all("takes from queue" in process.text() for process in (one, other)))
    # In turns, so that the two copies of each go to different consumers.
    post(amqp, *(message for pair in zip(messages, messages, strict=True) for message in pair))
    duplicates = "was handled before"
    wait_for(lambda: (one.text() + other.text()).count(duplicates) == 100, what="the other copy of each is a duplicate")
    end(one, other)
    assert ns(conn) == list(range(100))
    assert nothing_left(amqp)


@pytest.mark.usefixtures("tables")
def test_sigterm_lets_what_runs_finish_and_leaves_the_rest(conn: Conn, consume: Consume, amqp: str) -> None:
    with channel(amqp) as opened:  # a quorum queue counts a cancelled consumer until its messages are acknowledged
        opened.queue_declare("q", durable=True)
    consumer = consume()
    post(amqp, *((uuid7(), {"n": n, "do": "wait"}) for n in range(5)))
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.begun") == 1)
    consumer.send(signal.SIGTERM)
    wait_for(lambda: takers(amqp) == 0, what="it takes nothing more")
    conn.execute("INSERT INTO outbox.gate VALUES (1)")
    assert consumer.wait() == 0, consumer.text()
    assert ns(conn) == [0]
    wait_for(lambda: queue_depth(amqp, "q") == 4, what="what was not begun is for others")


@pytest.mark.usefixtures("tables")
def test_what_kills_its_process_is_parked_after_its_attempts_and_the_rest_is_handled(
    conn: Conn, consume: Consume, amqp: str
) -> None:
    post(amqp, (uuid7(), {"n": -1, "do": "exit"}), *((uuid7(), {"n": n}) for n in range(20)))
    deaths = 0
    for _ in range(10):
        consumer = consume(ATTEMPTS="3", CONCURRENCY="4")
        wait_for(lambda: not consumer.running or value(conn, "SELECT count(*) FROM outbox.parked_deliveries"))  # noqa: B023
        if consumer.running:
            break
        deaths += 1
    assert deaths == 3
    wait_for(all_of(conn, 20))
    end(consumer)
    assert ns(conn) == list(range(20))
    assert "process ended during attempt 3" in value(conn, "SELECT reason FROM outbox.parked_deliveries")
    assert nothing_left(amqp)


@pytest.mark.usefixtures("tables")
def test_what_kills_its_process_when_a_person_tries_it_again_is_parked_again(
    conn: Conn, consume: Consume, amqp: str
) -> None:
    post(amqp, (uuid7(), {"n": -1, "do": "exit"}))
    conn.execute("CREATE TABLE outbox.deaths (n int)")
    settled = "SELECT count(*) FROM outbox.parked_deliveries WHERE NOT retry"
    for wish in (False, True):
        if wish:
            conn.execute("UPDATE outbox.parked_deliveries SET retry = true")
        deaths = 0
        for _ in range(10):
            consumer = consume(ATTEMPTS="2")
            wait_for(lambda: not consumer.running or value(conn, settled))  # noqa: B023
            if consumer.running:
                break
            deaths += 1
        assert deaths == 2, f"wish: {wish}"
        end(consumer)


@pytest.mark.usefixtures("tables")
def test_sessions_that_are_ended_cost_nothing(conn: Conn, consume: Consume, amqp: str) -> None:
    post(amqp, *((uuid7(), {"n": n}) for n in range(200)), key=None)
    consumer = consume(CONCURRENCY="4")
    victims = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'outbox consumer' AND datname = current_database()"
    )
    for mark in range(20, 180, 40):
        wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") >= mark)  # noqa: B023
        assert value(conn, victims) > 0
    wait_for(lambda: all_of(conn, 200)() and nothing_left(amqp))
    end(consumer)
    assert ns(conn) == list(range(200))
    assert value(conn, "SELECT count(*) FROM outbox.parked_deliveries") == 0


def test_postgres_that_crashes_and_comes_back_costs_nothing(
    make_server: Callable[[str], PostgresServer], consume: Consume, amqp: str
) -> None:
    server = make_server("18")
    dsn = make_database(server, "shop")
    migrations.apply(dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(TABLES)
    post(amqp, *((uuid7(), {"n": n}) for n in range(200)))
    consumer = consume(OUTBOX_DSN=dsn, CONCURRENCY="4")

    def at_least(count: int) -> bool:
        with psycopg.connect(dsn, autocommit=True) as conn:
            return bool(value(conn, "SELECT count(*) FROM outbox.witness") >= count)

    for mark in (20, 80):
        wait_for(lambda: at_least(mark))  # noqa: B023
        server.stop("immediate")
        server.start()
    wait_for(lambda: at_least(200) and nothing_left(amqp))
    end(consumer)
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert ns(conn) == list(range(200))


@pytest.mark.usefixtures("tables")
def test_a_commit_that_was_not_answered_is_not_done_twice(conn: Conn, dsn: str, consume: Consume, amqp: str) -> None:
    proxy = LossyProxy(int(conninfo_to_dict(dsn)["port"] or 0), b"COMMIT", prepared=False)
    post(amqp, *((uuid7(), {"n": n}) for n in range(10)))
    consumer = consume(OUTBOX_DSN=make_conninfo(dsn, port=proxy.port))
    wait_for(lambda: all_of(conn, 10)() and nothing_left(amqp))
    end(consumer)
    proxy.close()
    assert proxy.lost == 1, "the test has lost its answer"
    assert ns(conn) == list(range(10))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("harm", ["killed", "frozen", "closed", "queue deleted"])
def test_a_broker_that_goes_away_and_comes_back_costs_nothing(
    conn: Conn, consume: Consume, amqp: str, broker: Broker, harm: str
) -> None:
    messages = [(uuid7(), {"n": n, "do": "wait"}) for n in range(8)]
    consumer = consume(CONCURRENCY="4", OUTBOX_AMQP_URL=f"{amqp}?heartbeat=2")
    wait_for(lambda: "takes from queue" in consumer.text())
    post(amqp, *messages, topic="t.1")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.begun") >= 1, what="handlers run")
    if harm == "killed":
        broker.kill()
        broker.start()
    elif harm == "frozen":
        broker.freeze()
        wait_for(lambda: "trying again" in consumer.text(), what="it notices")
        broker.thaw()
    elif harm == "closed":
        broker.ctl("close_all_connections", "--global", "for the test")
    else:
        with channel(amqp) as opened:
            opened.queue_delete("q")
    conn.execute("INSERT INTO outbox.gate VALUES (1)")
    wait_for(lambda: consumer.text().count("takes from queue") >= 2, what="it takes again")
    if harm == "queue deleted":
        post(amqp, *messages, topic="t.1")  # the broker has lost them: their sender sends them again
    wait_for(lambda: all_of(conn, 8)() and nothing_left(amqp))
    end(consumer)
    assert ns(conn) == list(range(8))


@pytest.mark.usefixtures("tables")
def test_a_consumer_that_is_frozen_in_its_transaction_does_not_keep_others_from_the_message(
    conn: Conn, consume: Consume, amqp: str
) -> None:
    frozen = consume(TIMEOUT="1", ATTEMPTS="1000", OUTBOX_AMQP_URL=f"{amqp}?heartbeat=2")
    post(amqp, (uuid7(), {"n": 1, "do": "wait"}), topic="t.1")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.begun") >= 1)
    frozen.freeze()
    takes = frozen.text().count("takes from queue")
    conn.execute("INSERT INTO outbox.gate VALUES (1)")
    heir = consume()
    wait_for(all_of(conn, 1), what="the server ends the session that holds the message")
    frozen.send(signal.SIGCONT)
    wait_for(lambda: frozen.text().count("takes from queue") > takes, what="it is back")
    end(heir, frozen)
    assert ns(conn) == [1]
    assert nothing_left(amqp)
