"""Provides what tests of looking and changing find: an application's name, rows of relays and consumers in trouble."""

from __future__ import annotations

from typing import Any

import psycopg

from apps.cli import posts
from kit.pipelines import Post, deployed, drain

Conn = psycopg.Connection[Any]
RELAY = """INSERT INTO outbox.relays (name, cluster, window_start, owner, target, relayed, trouble, updated_at)
VALUES (%s, (SELECT c.system_identifier::text FROM pg_control_system() AS c), '3:3:', %s, 'exchange x', 7, %s,
        now() - %s::interval)"""
AHEAD = "-1 hour"
"""Age of a running relay's last heartbeat: in the future, so that it counts as running however late a test asks."""


PARKED = """INSERT INTO outbox.parked_messages (relay, id, message_id, topic, key, payload, created_at, reason)
VALUES (%s, %s, outbox.uuid7(), 't', 'k', '{"n": 1}', now(), 'unroutable: 312 NO_ROUTE')"""


DELIVERY = """INSERT INTO outbox.parked_deliveries (consumer, queue, message_id, topic, body, headers, reason, deliveries, digest)
VALUES (%s, 'q', %s, %s, %s, %s, %s, %s, decode(replace(outbox.uuid7()::text, '-', ''), 'hex'))"""


def rows_of(said: str) -> list[list[str]]:
    return [line.split() for line in said.splitlines()[1:]]


def stock(conn: Conn, dsn: str) -> None:
    deployed(conn, posts)
    contents = {"done": "calm", "review": "risky", "broken": "rejected: no such customer"}
    posts.submit_many(conn, ((entity, Post(content=content)) for entity, content in contents.items()))
    drain(posts, dsn)
    posts.submit(conn, "new", Post())
