"""What is asked of the messages beside the log reads as many rows as it answers for, however many a key has there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from outbox.messages import log, parking

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]

LOST = 4_000
KEYS = 4
"""Few keys, so that each has a thousand messages. The first one of each has the routing key that no queue takes."""

READ = """
    SELECT sum(idx_tup_fetch) + sum(seq_tup_read) FROM pg_stat_xact_user_tables
    WHERE schemaname = 'outbox' AND relname = 'parked_messages'
"""


@pytest.fixture
def lost(conn: Conn) -> Conn:
    conn.execute(
        "INSERT INTO outbox.parked_messages"
        " (relay, id, message_id, topic, key, created_at, reason, routing_key, waits_until)"
        " SELECT 'r', n, gen_random_uuid(), 't', 'k' || n %% %s, now(), 'x',"
        " CASE WHEN n <= %s THEN 't' END, now() + interval '1 hour' FROM generate_series(1, %s) AS n",
        (KEYS, KEYS, LOST),
    )
    conn.execute("ANALYZE outbox.parked_messages")
    return conn


def asked(connect: Connect, name: str, **params: Any) -> tuple[list[tuple[Any, ...]], int]:
    """Return what a statement of the relay answers, and how many rows of the table it has read."""
    conn = connect(autocommit=False)
    for setting in log._PLANNING.items():
        conn.execute("SELECT set_config(%s, %s, false)", setting)
    rows = conn.execute(parking.SQL[name], {"name": "r", **params}).fetchall()
    return rows, int(conn.execute(READ).fetchone()[0])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["all wait", "all are parked"])
def test_which_keys_are_stopped_is_told_by_two_rows_of_each(lost: Conn, connect: Connect, kind: str) -> None:
    if kind == "all are parked":
        lost.execute("UPDATE outbox.parked_messages SET waits_until = NULL")
        lost.execute("VACUUM ANALYZE outbox.parked_messages")
    keys = [f"k{n}" for n in range(KEYS + 100)]
    rows, read = asked(connect, "parked_keys", keys=keys)
    assert sorted(rows) == [(f"k{n}", kind == "all wait") for n in range(KEYS)]
    assert read <= 2 * KEYS


def test_a_key_with_one_parked_message_among_those_that_wait_is_stopped_for_good(lost: Conn, connect: Connect) -> None:
    lost.execute("UPDATE outbox.parked_messages SET waits_until = NULL WHERE id = %s", (LOST - 1,))
    rows, _ = asked(connect, "parked_keys", keys=["k0", f"k{(LOST - 1) % KEYS}", "other"])
    assert dict(rows) == {"k0": True, f"k{(LOST - 1) % KEYS}": False}


def test_the_end_of_a_wait_reads_a_few_rows_of_each_message(lost: Conn, connect: Connect) -> None:
    """Of those behind an earlier one, not each of the earlier ones."""
    lost.execute(
        "UPDATE outbox.parked_messages SET waits_until = now() - interval '1 second' WHERE id > %s", (LOST - 200,)
    )
    lost.execute("VACUUM ANALYZE outbox.parked_messages")
    rows, read = asked(connect, "parked_expire", limit=5_000, again=1.0)
    assert rows == [(0,)], "they go on waiting with the first one of their key"
    assert read <= 4 * 200


def test_a_routing_key_is_tried_by_reading_a_few_rows(lost: Conn, connect: Connect) -> None:
    rows, read = asked(connect, "parked_probes", strict=True, after="", after_id=0, limit=200)
    assert [(row[0], row[-1]) for row in rows] == [(1, "t")]
    assert read <= 5
