"""Runs the witnesses that watch a run, and gathers what they saw: a History."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pika
import psycopg
from psycopg.rows import namedtuple_row

from . import bank
from .app import rules
from .cast import WITNESS, Cast
from .consumer import QUEUE
from .history import Arrival, Call, Change, DeadJob, Effect, History, Job, Known, Workflow

CHANGES = """
    SELECT id, workflow_id::text, from_status, to_status, version, actor, stage, attempt,
           extract(epoch FROM at)::float8 AS at
    FROM outbox.state_changes ORDER BY id
"""
WORKFLOWS = "SELECT id::text, entity_id AS entity, current_status AS status, version FROM outbox.workflow_states"
JOBS = """
    SELECT id, workflow_id::text, stage, status, attempt, 'worker-' || owner AS owner,
           extract(epoch FROM claimed_at)::float8 AS claimed_at
    FROM outbox.jobs
"""
DEAD_JOBS = "SELECT workflow_id::text, stage, status, attempts, error FROM outbox.dead_jobs"
EFFECTS = """
    SELECT 'outside' AS kind, workflow_id::text, stage, attempt, key, NULL AS message_id, extract(epoch FROM at)::float8 AS at
    FROM world.outside
    UNION ALL
    SELECT 'inside', workflow_id::text, stage, attempt, NULL, NULL, extract(epoch FROM at)::float8 FROM world.inside
    UNION ALL
    SELECT 'consumer', NULL, NULL, NULL, NULL, message_id::text, extract(epoch FROM at)::float8 FROM world.consumed
"""
LEDGER = """
    SELECT workflow_id::text, workflow_id || ':' || entered || ':' || name AS key, call::text, state FROM outbox.effects
"""
PARKED = """
    SELECT message_id::text, reason FROM outbox.parked_messages
    UNION ALL SELECT message_id, reason FROM outbox.parked_deliveries
"""
INBOX = "SELECT message_id::text FROM outbox.inbox"


class Tap:
    """Takes everything that arrives at a queue of the harness's own, whatever happens to the broker."""

    def __init__(self, url: str, queue: str = WITNESS) -> None:
        self._url, self._queue = url, queue
        self._ended = False
        self.arrivals: list[Arrival] = []
        self.seen: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended = True
        self._thread.join(10)

    def _run(self) -> None:
        while not self._ended:
            try:
                self._take()
            except (pika.exceptions.AMQPError, OSError):
                time.sleep(0.2)

    def _take(self) -> None:
        parameters = pika.URLParameters(self._url + "?heartbeat=3&blocked_connection_timeout=5&socket_timeout=3")
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=500)
            for method, properties, body in channel.consume(self._queue, inactivity_timeout=0.2):
                if self._ended:
                    return
                if method is None:
                    continue
                headers = properties.headers or {}
                found = str(headers.get("cloudEvents_id"))
                key = headers.get("cloudEvents_subject")
                self.arrivals.append(
                    Arrival(found, str(properties.message_id), method.routing_key, key, json.loads(body), time.time())
                )
                self.seen.add(found)
                # After it is recorded, so that what the broker delivers twice is recorded twice.
                channel.basic_ack(method.delivery_tag)


class LogReader:
    """Reads the write-ahead log all the time, so that the server needn't keep much of it."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Reads the rest."""
        self._ended = True
        self._thread.join(30)
        with self._cast.admin() as admin:
            while self._cast.decoder.read(admin):
                pass

    def _run(self) -> None:
        while not self._ended:
            try:
                with self._cast.admin() as admin:
                    while not self._ended:
                        self._cast.decoder.read(admin)
                        time.sleep(0.5)
            except (psycopg.Error, OSError):
                time.sleep(0.2)


def calls(path: Path) -> list[Call]:
    """Returns what clients were told. A call whose end was not recorded is unknown."""
    told: dict[str, Call] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        noted = json.loads(line)
        noted["ended"] = noted["ended"] or float("inf")
        told[noted["client"]] = Call(**noted)
    return list(told.values())


def remaining(conn: psycopg.Connection[Any], cast: Cast, tap: Tap) -> list[str]:
    """Returns what is still to be done, in words; nothing when the run is drained."""
    found = []
    jobs = conn.execute("SELECT count(*) FROM outbox.jobs").fetchone()
    if jobs and jobs[0]:
        found.append(f"{jobs[0]} jobs are open")
    orphans = conn.execute("SELECT count(*) FROM outbox.orphans").fetchone()
    if orphans and orphans[0]:
        found.append(f"{orphans[0]} parents have children to cancel")
    behind = conn.execute(
        "SELECT count(*) FROM outbox.relays AS r WHERE r.window_end IS NOT NULL OR EXISTS "
        "(SELECT FROM outbox.messages AS m WHERE NOT pg_visible_in_snapshot(m.xid, r.window_start))"
    ).fetchone()
    if behind and behind[0]:
        found.append("the relay is behind")
    parked = conn.execute("SELECT count(*) FROM outbox.parked_messages").fetchone()
    if parked and parked[0]:
        found.append(f"{parked[0]} messages are parked")
    for queue in (QUEUE, WITNESS):
        depths = cast.broker.ctl("list_queues", "name", "messages").split("\n")
        depth = next((line.split()[1] for line in depths if line.startswith(queue)), "?")
        if depth != "0":
            found.append(f"queue {queue} has {depth} messages")
    return found


def gather(cast: Cast, tap: Tap, not_drained: list[str]) -> History:
    """Returns all that the witnesses saw."""
    history = History(rules(), cast.config.strict, not_drained=not_drained, held_up=cast.held_up, ended=time.time())
    history.calls = calls(cast.calls) + calls(cast.answers)
    history.book = bank.read(cast.book)
    history.transactions = cast.decoder.transactions
    history.arrivals = tap.arrivals
    with cast.admin() as conn, conn.cursor(row_factory=namedtuple_row) as cursor:

        def rows(query: str) -> list[dict[str, Any]]:
            return [row._asdict() for row in cursor.execute(query.encode()).fetchall()]

        history.changes = [Change(**row) for row in rows(CHANGES)]
        history.workflows = [Workflow(**row) for row in rows(WORKFLOWS)]
        history.jobs = [Job(**row) for row in rows(JOBS)]
        history.dead_jobs = [DeadJob(**row) for row in rows(DEAD_JOBS)]
        history.effects = [Effect(**row) for row in rows(EFFECTS)]
        history.ledger = [Known(**row) for row in rows(LEDGER)]
        history.parked = [(row["message_id"], row["reason"]) for row in rows(PARKED)]
        history.inbox = [row["message_id"] for row in rows(INBOX)]
    return history
