"""Every kind of wait under faults: workers are killed, frozen and cut off, people and systems answer twice and too late.

WAITS_CHAOS_SECONDS says how long (default: a few seconds). What is right is reckoned from what clients were told, what the
world saw, and the history.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

import outbox
from kit.pipelines import deployed, value
from kit.scenes import books_are_right
from kit.servers import Process, wait_for

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
SECONDS = float(os.environ.get("WAITS_CHAOS_SECONDS", "6"))
WORKER = ["worker", "--app", "apps.waits", "--lease", "3"]

# What must hold in the end: each question names what contradicts it.
WRONG = {
    "a workflow that has not ended": """
        SELECT w.pipeline || ' ' || w.entity_id || ' in ' || w.current_status
        FROM outbox.workflow_states AS w JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
        WHERE NOT r.final""",
    "a question that did not end as the history says": """
        SELECT a.entity_id || ': ' || a.ended || ' ' || a.to_status FROM outbox.approvals AS a
        LEFT JOIN outbox.state_changes AS c ON c.workflow_id = a.workflow_id AND c.version = a.version + 1
        WHERE (a.to_status, a.decided_by) IS DISTINCT FROM (c.to_status, c.actor)""",
    "a question that was asked twice": "SELECT entity_id FROM outbox.approvals GROUP BY 1 HAVING count(*) > 1",
    "a deadline before its time": """
        SELECT entity_id FROM outbox.approvals WHERE ended = 'deadline' AND ended_at < deadline""",
    "a payment that two steps took": """
        SELECT entity_id FROM outbox.signals WHERE taken_at IS NOT NULL GROUP BY 1 HAVING count(*) > 1""",
    "a case that was paid without a signal": """
        SELECT w.entity_id FROM outbox.workflow_states AS w JOIN outbox.state_changes AS c ON c.workflow_id = w.id
        JOIN outbox.state_changes AS b ON b.workflow_id = w.id AND b.version = c.version - 1
        WHERE c.to_status = 'PAID' AND NOT EXISTS (
            SELECT FROM outbox.signals AS s WHERE s.workflow_id = w.id AND s.taken_at BETWEEN b.at AND c.at)""",
    "a parent that went on before its children": """
        SELECT p.entity_id FROM outbox.state_changes AS c JOIN outbox.workflow_states AS p ON p.id = c.workflow_id
        WHERE c.to_status = 'MERGED' AND (
            SELECT count(*) FROM outbox.children AS k JOIN outbox.state_changes AS d ON d.workflow_id = k.child_id
            WHERE k.parent_id = p.id AND d.to_status = 'DONE') <> 3""",
    "a parent that went on twice": """
        SELECT workflow_id::text FROM outbox.state_changes WHERE to_status = 'MERGED' GROUP BY 1 HAVING count(*) > 1""",
    "a number that was drawn again after it was kept": """
        SELECT entity FROM outbox.drawn GROUP BY 1 HAVING count(DISTINCT number) > 1""",
    "a tick that ran twice": "SELECT at::text FROM outbox.ticks GROUP BY at HAVING count(*) > 1",
    "a tick that did not run": """
        SELECT t::text FROM (SELECT min(at) AS first, max(at) AS last FROM outbox.ticks) AS b
        CROSS JOIN generate_series(b.first, b.last, interval '1 second') AS t
        WHERE NOT EXISTS (SELECT FROM outbox.ticks AS k WHERE k.at = t)""",
    "an end that nobody was told of": """
        SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.pipeline = 'cases'
        AND NOT EXISTS (SELECT FROM outbox.told AS t WHERE (t.entity, t.status) = (w.entity_id, w.current_status))""",
    "something that is left": """
        SELECT 'jobs' FROM outbox.jobs UNION ALL SELECT 'dead jobs' FROM outbox.dead_jobs
        UNION ALL SELECT 'waits' FROM outbox.waits UNION ALL SELECT 'orphans' FROM outbox.orphans""",
}


class People:
    """Answer, pay and are impatient: each says things twice, and notes what it was told."""

    def __init__(self, dsn: str, name: str, stopping: threading.Event) -> None:
        self.dsn, self.name, self.stopping = dsn, name, stopping
        self.random = random.Random(name)
        self.won: list[tuple[str, str]] = []
        self.thread = threading.Thread(target=self.run, name=name)

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self.dsn, autocommit=True) as conn:
                    while not self.stopping.is_set():
                        self.step(conn)
                        time.sleep(self.random.random() * 0.02)
            except psycopg.Error:
                time.sleep(0.1)

    def step(self, conn: Conn) -> None:
        ask = "SELECT entity_id, current_status FROM outbox.workflow_states WHERE pipeline = 'cases' ORDER BY random() LIMIT 5"
        for entity, status in conn.execute(ask).fetchall():
            try:
                if status == "ASKED" or self.random.random() < 0.1:
                    decision = self.random.choice(["approve", "approve", "approve", "reject"])
                    reached = outbox.decide(conn, "cases", entity, decision, by=self.name)
                    self.won.append((entity, reached))
                elif self.random.random() < 0.5:  # too early, in time, too late, and twice
                    outbox.signal(conn, "cases", entity, "payment", {"from": self.name}, id="the payment")
            except psycopg.DatabaseError as error:
                if not (error.sqlstate or "").startswith("OB"):
                    raise


def nemesis(conn: Conn, workers: list[Process], spawn: Spawn, stopping: threading.Event, dice: random.Random) -> None:
    while not stopping.is_set():
        time.sleep(dice.uniform(0.2, 0.8))
        number = dice.randrange(len(workers))
        match dice.choice(["kill", "freeze", "freeze", "cut"]):
            case "kill":
                workers[number].kill9()
                workers[number] = spawn(*WORKER)
            case "freeze":
                workers[number].send(signal.SIGSTOP)
                time.sleep(dice.choice([0.3, 2.0, 4.0]))
                workers[number].send(signal.SIGCONT)
            case "cut":
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND application_name LIKE 'outbox%%' AND random() < 0.3"
                )


def test_every_kind_of_wait_ends_once_whatever_dies(conn: Conn, dsn: str, admin_dsn: str, spawn: Spawn) -> None:
    from apps.waits import cases, parts

    seed = os.environ.get("WAITS_CHAOS_SEED", str(random.randrange(10**6)))
    print(f"WAITS_CHAOS_SEED={seed}")
    conn.execute("CREATE TABLE outbox.drawn (entity text, number bigint); CREATE TABLE outbox.ticks (at timestamptz)")
    conn.execute("CREATE TABLE outbox.told (entity text, status text)")
    for pipeline in (parts, cases):
        deployed(conn, pipeline)
    workers = [spawn(*WORKER) for _ in range(3)]
    stopping = threading.Event()
    people = [People(dsn, name, stopping) for name in ("ann", "bob", "cid")]
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        threads = [each.thread for each in people]
        threads.append(
            threading.Thread(
                target=nemesis, args=(admin, workers, spawn, stopping, random.Random(seed)), name="nemesis"
            )
        )
        for thread in threads:
            thread.start()
        until, number = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            cases.submit_many(conn, [(f"c{number + n}", {}) for n in range(5)])
            number += 5
            time.sleep(0.1)
        stopping.set()
        for thread in threads:
            thread.join()
    finish(conn, number)
    found = {name: rows for name, question in WRONG.items() if (rows := conn.execute(question.encode()).fetchall())}
    assert found == {}
    books_are_right(conn)
    ended = dict(conn.execute("SELECT entity_id, to_status FROM outbox.approvals").fetchall())
    for person in people:
        for entity, reached in person.won:
            assert ended[entity] == reached, f"{person.name} was told that {entity} went to {reached}"
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'CLOSED'") > 0


def finish(conn: Conn, cases: int) -> None:
    """No more faults: everybody answers and pays, and everything ends; then the clock is stopped."""

    def all_have_ended() -> bool:
        for entity, status in conn.execute(
            "SELECT entity_id, current_status FROM outbox.workflow_states WHERE current_status IN ('ASKED', 'UNPAID')"
        ).fetchall():
            try:
                if status == "ASKED":
                    outbox.decide(conn, "cases", entity, "approve", by="last")
                else:
                    outbox.signal(conn, "cases", entity, "payment", {}, id="the last payment")
            except psycopg.DatabaseError as error:
                if not (error.sqlstate or "").startswith("OB"):
                    raise
        left = "SELECT (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.orphans)"
        ended = "SELECT count(*) FROM outbox.workflow_states WHERE pipeline = 'cases' AND current_status IN ('CLOSED', 'REFUSED', 'LATE')"
        return value(conn, ended) == cases and value(conn, left) == 0

    wait_for(all_have_ended, what="everything ends")
    wait_for(lambda: value(conn, "SELECT next_at > now() FROM outbox.schedules"), what="all ticks are caught up")
    conn.execute("DELETE FROM outbox.schedules")
