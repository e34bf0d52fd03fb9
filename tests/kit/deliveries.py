"""Sends messages through a real relay to a real RabbitMQ, and checks what has arrived, and in which order."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import psycopg

from kit.broker import channel
from kit.pipelines import value

Conn = psycopg.Connection[Any]


def bind(url: str, key: str = "#") -> None:
    """Makes the exchange `x`, and the queue `q` bound to it with `key`."""
    with channel(url) as opened:
        opened.exchange_declare("x", "topic", durable=True)
        opened.queue_declare("q", durable=True)
        opened.queue_bind("q", "x", key)


def write(conn: Conn, count: int, keys: int = 10, first: int = 0) -> None:
    """Writes messages t.<n> with payload {"n": n}, in several transactions."""
    for start in range(first, first + count, 50):
        conn.execute(
            "INSERT INTO outbox.messages (topic, key, payload) "
            "SELECT 't.' || n, 'k' || n %% %s::int, jsonb_build_object('n', n) FROM generate_series(%s::int, %s::int) n",
            (keys, start, min(first + count, start + 50) - 1),
        )


def give_up(conn: Conn) -> None:
    """Has what waits for a queue have waited long enough."""
    conn.execute("UPDATE outbox.parked_messages SET waits_until = NULL")


def take(url: str) -> list[tuple[Any, dict[str, Any]]]:
    """Takes all messages from the queue; returns (properties, payload) of each delivery."""
    found = []
    with channel(url) as opened:
        while left := opened.queue_declare("q", passive=True).method.message_count:
            got = list(islice(opened.consume("q"), left))
            found += [(properties, json.loads(body)) for _, properties, body in got]
            opened.basic_ack(got[-1][0].delivery_tag, multiple=True)
            opened.cancel()  # messages that have come in the meantime go back
    return found


def relayed(conn: Conn) -> bool:
    """Returns whether the relay has passed every message that was written."""
    return bool(
        value(conn, "SELECT window_end IS NULL AND NOT EXISTS (SELECT FROM outbox.messages m "
                    "WHERE NOT pg_visible_in_snapshot(m.xid, r.window_start)) FROM outbox.relays r")
    )  # fmt: skip


def first_of_each(deliveries: list[tuple[Any, dict[str, Any]]]) -> list[int]:
    return list(dict.fromkeys(payload["n"] for _, payload in deliveries))


def check_order(deliveries: list[tuple[Any, dict[str, Any]]], keys: int = 10) -> None:
    """Checks that the first deliveries of each key's messages are in order."""
    for key in range(keys):
        mine = [n for n in first_of_each(deliveries) if n % keys == key]
        assert mine == sorted(mine), f"key k{key}"
