"""The examples, run by real workers that are killed on the way; and waits that outlive every process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, status_of, value
from kit.servers import Process, wait_for
from outbox.operations import look

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples"))

from orders.pipeline import Order, orders  # noqa: E402 - where the examples are is known only now

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
WORKER = ["worker", "--app", "orders.pipeline:orders"]
HERE = {"PYTHONPATH": str(ROOT / "examples")}


def stands(conn: Conn, entity: str, status: str) -> None:
    wait_for(lambda: status_of(conn, entity) == status, what=f"{entity} in {status}")


def test_orders_wait_for_their_payment_through_kills(conn: Conn, dsn: str, spawn: Spawn) -> None:
    deployed(conn, orders)
    cli = Outbox(dsn)
    for entity in ("early", "paid", "wrong", "never"):
        orders.submit(conn, entity, Order(cents=1999))
    cli("signal", "early", "payment", '{"cents": 1999, "charge": "ch_0"}')

    first = spawn(*WORKER, env=HERE)
    stands(conn, "early", "SHIPPED")
    for entity in ("paid", "wrong", "never"):
        stands(conn, entity, "WAITING_FOR_PAYMENT")
    first.kill9()

    # Nobody runs now. What happens meanwhile is in the tables.
    with psycopg.connect(dsn) as shop:  # the payment service's own transaction
        outbox.signal(shop, "orders", "paid", "payment", {"cents": 1999, "charge": "ch_1"}, id="ch_1")
    for _ in range(2):  # a webhook is delivered twice
        cli("signal", "wrong", "payment", '{"cents": 5, "charge": "ch_2"}', "--id", "ch_2")
    conn.execute("UPDATE outbox.jobs SET deadline = now() WHERE status = 'WAITING_FOR_PAYMENT'")

    second = spawn(*WORKER, env=HERE)
    stands(conn, "paid", "SHIPPED")
    stands(conn, "never", "EXPIRED")
    stands(conn, "wrong", "WAITING_FOR_CLERK")
    second.kill9()
    (asked,) = cli("approvals", "--json").json
    assert asked["question"] == "5 cents were paid of 1999. Ship it?"
    assert cli("decide", "wrong", "ship", "--by", "clerk").out == "wrong: ship by clerk -> READY\n"

    spawn(*WORKER, env=HERE)
    stands(conn, "wrong", "SHIPPED")
    shipped = conn.execute(
        "SELECT key, count(*) FROM outbox.messages WHERE topic = 'orders.shipped' GROUP BY 1 ORDER BY 1"
    )
    assert shipped.fetchall() == [("early", 1), ("paid", 1), ("wrong", 1)]
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_k11_a_decision_whose_process_dies_at_once_is_carried_out(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """Approved, committed, killed, with no worker there: the next worker finds the job."""
    deployed(conn, orders)
    orders.submit(conn, "a", Order(cents=1999))
    cli = Outbox(dsn)
    cli("signal", "a", "payment", '{"cents": 1, "charge": "ch_1"}')
    worker = spawn(*WORKER, env=HERE)
    stands(conn, "a", "WAITING_FOR_CLERK")
    worker.kill9()
    decider = """if True:
        import os, signal, psycopg, outbox
        with psycopg.connect(os.environ["OUTBOX_DSN"]) as conn:
            outbox.decide(conn, "orders", "a", "ship", by="clerk")
            conn.commit()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with cli.process(decider, program=("-c",)) as process:
        assert process.wait() == -signal.SIGKILL
    spawn(*WORKER, env=HERE)
    stands(conn, "a", "SHIPPED")


def test_a_frozen_worker_fires_no_deadline_that_was_decided_meanwhile(conn: Conn, dsn: str, spawn: Spawn) -> None:
    """Ten questions whose deadline passes while the only worker is frozen; five are answered before it wakes up."""
    deployed(conn, orders)
    orders.submit_many(conn, [(f"e{n}", Order(cents=1999)) for n in range(10)])
    for n in range(10):
        outbox.signal(conn, orders, f"e{n}", "payment", {"cents": 1, "charge": "ch"})
    worker = spawn(*WORKER, env=HERE)
    wait_for(lambda: len(look.approvals(conn)) == 10, what="all are asked")
    worker.freeze()
    conn.execute("UPDATE outbox.jobs SET deadline = now() WHERE status = 'WAITING_FOR_CLERK'")
    for n in range(5):
        outbox.decide(conn, orders, f"e{n}", "ship", by="clerk")
    worker.send(signal.SIGCONT)
    for n in range(10):
        stands(conn, f"e{n}", "SHIPPED" if n < 5 else "REFUNDED")
    ended = conn.execute("SELECT ended, count(*) FROM outbox.approvals GROUP BY 1 ORDER BY 1").fetchall()
    assert ended == [("deadline", 5), ("decided", 5)]


def test_research_fans_out_joins_and_is_edited_through_a_kill(conn: Conn, dsn: str, spawn: Spawn) -> None:
    from research.pipeline import Report, lookups, reports

    app = ["worker", "--app", "research.pipeline"]
    deployed(conn, lookups)
    deployed(conn, reports)
    reports.submit_many(conn, [(topic, Report(topic=topic)) for topic in ("cats", "dogs", "fish")])
    first = spawn(*app, env=HERE)
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.checkpoints") > 3, what="calls were made")
    first.kill9()
    spawn(*app, env=HERE)
    cli = Outbox(dsn)
    for topic in ("cats", "dogs", "fish"):
        stands(conn, topic, "WAITING_FOR_EDITOR")
    answered = "SELECT count(*) FROM outbox.workflow_states WHERE pipeline = 'lookups' AND current_status = 'ANSWERED'"
    assert value(conn, answered) == 15
    joined = "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'FOUND'"
    assert value(conn, joined) == 3
    edit = '{"topic": "cats", "draft": "Cats sleep."}'
    env = {"PYTHONPATH": str(ROOT / "examples")}
    cli("approve", "cats", "--by", "sarah", "--edit", edit, "--app", "research.pipeline", env=env)
    cli("reject", "dogs", "--by", "sarah", "--reason", "thin")
    assert (status_of(conn, "cats"), status_of(conn, "dogs")) == ("PUBLISHED", "GIVEN_UP")
    assert (
        value(conn, "SELECT metadata ->> 'draft' FROM outbox.workflow_states WHERE entity_id = 'cats'") == "Cats sleep."
    )


def test_a_monitor_finds_what_is_dead_by_the_clock(conn: Conn, dsn: str, spawn: Spawn) -> None:
    from monitor.pipeline import incidents

    deployed(conn, orders)
    deployed(conn, incidents)
    orders.submit_many(conn, [(f"e{n}", Order(cents=1)) for n in range(3)])
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{}'")  # which no stage can read
    spawn(*WORKER, env=HERE)
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 3, what="their jobs are dead")
    conn.execute("UPDATE outbox.schedules SET next_at = now()")
    for _ in range(2):
        spawn("worker", "--app", "monitor.pipeline:incidents", env=HERE)
    wait_for(lambda: len(look.approvals(conn)) == 1, what="somebody is asked")
    (asked,) = look.approvals(conn)
    assert asked["question"] == "3 jobs of orders.bill are dead. Who takes it?"
    outbox.decide(conn, incidents, asked["entity_id"], "take", by="sarah")
    assert status_of(conn, asked["entity_id"]) == "TAKEN"
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE pipeline = 'incidents'") == 1
