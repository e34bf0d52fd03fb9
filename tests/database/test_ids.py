"""Ids of workflows and messages: UUIDv7, by the database's clock, each only once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from kit.pipelines import value

Conn = psycopg.Connection[Any]


def made(conn: Conn, count: int) -> list[UUID]:
    return [row[0] for row in conn.execute("SELECT outbox.uuid7() FROM generate_series(1, %s)", (count,))]


def test_an_id_is_a_uuid7_of_the_time_at_which_it_was_made(conn: Conn) -> None:
    before = value(conn, "SELECT clock_timestamp()")
    ids = made(conn, 1_000)
    after = value(conn, "SELECT clock_timestamp()")
    for found in ids:
        assert (found.version, found.variant) == (7, UUID(int=0, version=4).variant)
        at = datetime.fromtimestamp((found.int >> 80) / 1000, UTC)
        assert before - timedelta(milliseconds=2) < at < after + timedelta(milliseconds=2)
    assert value(conn, "SELECT outbox.uuid7_time(%s)", ids[0]) <= after


def test_ids_are_different_and_go_up_with_time(conn: Conn) -> None:
    ids = made(conn, 100_000)
    assert len(set(ids)) == len(ids)
    places = [found.int >> 80 for found in ids]
    assert places == sorted(places), "so an index grows at its end"
    assert len({found.int & (1 << 62) - 1 for found in ids}) == len(ids), "without the time, too"


def test_sessions_that_have_set_the_same_seed_make_different_ids(conn: Conn, connect: Callable[..., Conn]) -> None:
    found = []
    for session in (conn, connect()):
        session.execute("SELECT setseed(0.5)")
        found += [id.int & (1 << 62) - 1 for id in made(session, 1_000)]
    assert len(set(found)) == 2_000


def test_a_session_that_sets_its_seed_for_each_message_makes_different_ids(conn: Conn) -> None:
    conn.execute(
        "INSERT INTO outbox.messages (topic, key) SELECT 't', setseed(0.5)::text FROM generate_series(1, 10000)"
    )
    assert value(conn, "SELECT count(DISTINCT message_id) FROM outbox.messages") == 10_000, "apart by the time"
