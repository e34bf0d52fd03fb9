"""Split brain: a former primary is back and takes writes. Processes leave it for the right one, with all that they hold.

The former primary is the first host of the DSN, and takes writes to the end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from kit.broker import queue_depth
from kit.commands import Outbox
from kit.databases import OWNER
from kit.letters import post, uuid7
from kit.pipelines import QUICK, Post, deployed, make_posts, status_of, value
from kit.pooler import Pooler
from kit.replication import Pair, is_primary
from kit.servers import DEADLINE, wait_for
from outbox import Delivery, Pipeline, Run, Worker
from outbox.database import connection_group, migrations, primary
from outbox.messages.consumer import Consumer
from outbox.messages.handoff import Handoff
from outbox.messages.relay import Relay

Conn = psycopg.Connection[Any]
INSERT = "INSERT INTO effects VALUES (%s)"
EFFECTS = "SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') FROM effects"
SESSIONS = """SELECT count(*) FROM pg_stat_activity
    WHERE application_name LIKE 'outbox %' AND application_name <> 'outbox hosts'"""

begun: set[str] = set()
gate = threading.Event()
"""Opens for handlers that have written and hold their transactions open."""

in_loops: Pipeline[Any] = Pipeline("in_loops", data=Post, initial="NEW", final={"DONE"})
in_threads: Pipeline[Any] = Pipeline("in_threads", data=Post, initial="NEW", final={"DONE"})


@in_loops.stage("hold", on="NEW", to="DONE", transaction=True, retry=QUICK)
async def in_loop(run: Run[Post]) -> None:
    await run.connection.execute(INSERT, [run.entity_id])
    begun.add(run.entity_id)
    await asyncio.to_thread(gate.wait, DEADLINE)


@in_threads.stage("hold", on="NEW", to="DONE", transaction=True, retry=QUICK)
def in_thread(run: Run[Post]) -> None:
    run.connection.execute(INSERT, [run.entity_id])
    begun.add(run.entity_id)
    gate.wait(DEADLINE)


async def receive(delivery: Delivery) -> None:
    await delivery.connection.execute(INSERT, [delivery.payload["name"]])
    begun.add(delivery.payload["name"])
    await asyncio.to_thread(gate.wait, DEADLINE)


posts = make_posts()
pipelines = [posts, in_loops, in_threads]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Pair(synchronous=False) as pair:
        with pair.primary.admin() as admin:
            admin.execute(f"CREATE ROLE {OWNER} LOGIN".encode())  # with which poolers are asked whether they answer
            migrations.apply(admin)
            for pipeline in pipelines:
                deployed(admin, pipeline)
            admin.execute("CREATE TABLE effects (name text)")
        yield pair


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_group, "CHECK_EVERY", 0.2)


def split(pair: Pair) -> None:
    """Has two primaries, of which the standby until now is the right one."""
    with pair.primary.admin() as old, pair.standby.admin() as new:
        now = value(old, "SELECT pg_current_wal_flush_lsn()::text")
        wait_for(lambda: value(new, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", now), what="it has all")
    pair.detach()
    pair.promote(move=False)


@pytest.fixture
def two(pair: Pair) -> Pair:
    """Two primaries, of which this process knows nothing yet."""
    if not is_primary(pair.standby):
        split(pair)
    primary._known.clear()
    return pair


def submit(conn: Conn, pipeline: Pipeline[Any], entity: str) -> None:
    pipeline.submit(conn, entity, Post())


def is_done(conn: Conn, entity: str) -> bool:
    found = conn.execute("SELECT current_status FROM outbox.workflow_states WHERE entity_id = %s", [entity]).fetchone()
    return found is not None and found[0] in ("DONE", "COMPLETED")


def test_processes_leave_a_former_primary_with_all_that_they_hold(pair: Pair, amqp: str) -> None:
    dsn = pair.hosts()

    async def until(condition: Callable[[], Any], what: str) -> None:
        await asyncio.to_thread(wait_for, condition, what=what)

    async def scene() -> None:
        relay = Relay(dsn, Handoff(dsn, "posts", topics=["go"]))
        # The consumer knows one name, which is moved while its lines stay.
        services = [Worker(pipelines, dsn), relay, Consumer("q", receive, dsn=pair.dsn(), amqp_url=amqp)]
        running = [asyncio.create_task(each.run()) for each in services]
        with pair.primary.admin() as old, pair.standby.admin() as new:
            # What is held open on the old primary while the other one is promoted:
            submit(old, in_loops, "async")
            submit(old, in_threads, "sync")
            await asyncio.to_thread(post, amqp, (uuid7(), {"name": "message"}))
            await until(lambda: begun >= {"async", "sync", "message"}, "all handlers have written")
            await asyncio.to_thread(split, pair)
            pair.move()
            submit(old, posts, "lost")
            # Each process takes up work on the right one:
            submit(new, posts, "kept")
            new.execute(
                """INSERT INTO outbox.messages (topic, key, payload) VALUES ('go', 'handed', '{"content": "x"}')"""
            )
            await until(lambda: is_done(new, "kept"), "the worker works there")
            await until(lambda: is_done(new, "handed"), "the relay reads and writes there")
            # What is still there commits there, and that is lost: this is why they leave.
            await until(lambda: value(old, SESSIONS) == 0, "all have left the old one")
            assert value(new, EFFECTS) == "", "nothing is committed yet"
            gate.set()
            for entity in ("async", "sync"):
                await until(lambda entity=entity: is_done(new, entity), f"{entity} runs again there")
            await until(lambda: value(new, EFFECTS) == "async message sync", "and each has one effect")
            await until(lambda: queue_depth(amqp, "q") == 0, "the message is acknowledged")
            # Nothing comes back to the old one, though it is listed first:
            assert value(old, SESSIONS) == 0
            new.execute(SESSIONS.replace("count(*)", "pg_terminate_backend(pid)").encode())
            submit(new, posts, "again")
            await until(lambda: is_done(new, "again"), "they have connected again, to the right one")
            assert value(old, SESSIONS) == 0
            assert value(old, EFFECTS) == "", "nothing that was held open is committed there"
        for each in services:
            each.stop()
        await asyncio.wait_for(asyncio.gather(*running), DEADLINE)

    asyncio.run(scene())


@pytest.mark.pgbouncer
def test_behind_a_pooler_for_each_server_the_right_one_is_taken_too(two: Pair) -> None:
    with ExitStack() as stack, two.primary.admin() as new:
        poolers = []
        for server in two._servers:
            poolers.append(Pooler(server, "postgres", OWNER))
            stack.callback(poolers[-1].remove)
            poolers[-1].start()
        pooled = f"host=127.0.0.1,127.0.0.1 port={poolers[0].port},{poolers[1].port} user=postgres dbname=postgres"
        submit(new, posts, "pooled")
        worker = Worker(posts, pooled, listen_dsn=two.hosts(), drain=True)
        asyncio.run(asyncio.wait_for(worker.run(), DEADLINE))
        assert is_done(new, "pooled")


def test_what_is_started_while_there_are_two_goes_to_the_right_one(two: Pair) -> None:
    dsn = two.hosts()
    with two.primary.admin() as new:
        submit(new, posts, "later")
        asyncio.run(asyncio.wait_for(Worker(posts, dsn, drain=True).run(), DEADLINE))
        assert is_done(new, "later")
        primary._known.clear()
        Outbox(dsn)("submit", "--pipeline", "posts", input='{"entity_id": "by-hand", "metadata": {}}')
        assert status_of(new, "by-hand") == "RECEIVED"
        primary._known.clear()
        assert any(row["status"] == "RECEIVED" for row in Outbox(dsn)("status", "--json").json["overview"])
