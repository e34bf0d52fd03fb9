"""The ring of the message log: a child is emptied when every relay has passed it, and nobody waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg

from kit.log import WRITE, Reader, fill, sizes
from kit.pipelines import value

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
Another = Callable[..., Reader]


def test_a_child_is_emptied_when_every_relay_has_passed_it(conn: Conn, reader: Reader, another: Another) -> None:
    other = another("slow")
    other.begin()
    fill(conn, 1)
    fill(conn, 1_000_000)
    assert len(reader.next()) == 6
    assert reader.do(reader.log.rotate()) == {}
    assert sizes(conn) == [3, 3, 0, 0], "the other relay has not read them"
    assert len(other.next()) == 6
    reader.do(reader.log.rotate())
    assert sizes(conn) == [0, 3, 0, 0], "the one that is written to stays"
    fill(conn, 4_000_000)
    assert sizes(conn) == [3, 3, 0, 0], "around the ring"


def test_a_rotation_that_waits_in_vain_undoes_nothing_of_the_work_beside_it(
    conn: Conn, connect: Connect, reader: Reader
) -> None:
    fill(conn, 1)
    writer = connect(autocommit=False)
    writer.execute(WRITE, ("open", "a"))
    fill(conn, 1_000_000)
    reader.next()

    async def side_by_side() -> dict[str, str]:
        rotation = asyncio.create_task(reader.log.rotate())
        while not rotation.done():
            conn.execute(WRITE, ("beside", "b"))
            window = await reader.log.cut()
            assert window is not None
            assert [part async for part in reader.log.read(window)]
            await reader.log.advance(0, 1, {}, done=True)
        return await rotation

    assert list(reader.do(side_by_side())) == ["messages_0"]
    assert reader.next() == [], "what was passed stays passed"


def test_a_rotation_that_waits_for_a_writer_holds_up_others_only_briefly(
    conn: Conn, connect: Connect, reader: Reader
) -> None:
    fill(conn, 1)
    writer = connect(autocommit=False)
    writer.execute(WRITE, ("open", "a"))
    fill(conn, 1_000_000)
    reader.next()
    conn.execute("SET lock_timeout = '120s'")
    waits = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"

    async def beside_writers() -> dict[str, str]:
        rotation = asyncio.create_task(reader.log.rotate())
        while not value(conn, waits):
            await asyncio.sleep(0)
            if rotation.done():  # this machine was too slow to see it wait
                rotation = asyncio.create_task(reader.log.rotate())
        conn.execute("INSERT INTO outbox.messages (id, topic) VALUES (9, 'same child'), (1000009, 'another')")
        return await rotation

    assert list(reader.do(beside_writers())) == ["messages_0"]
    assert reader.next() == ["same child", "another"]


def test_what_the_relay_does_while_a_child_cannot_be_had_is_done(conn: Conn, connect: Connect, reader: Reader) -> None:
    fill(conn, 1)
    fill(conn, 1_000_000)
    reader.next()
    connect(autocommit=False).execute("LOCK TABLE outbox.messages_0 IN ROW EXCLUSIVE MODE")
    conn.execute(WRITE, ("next", "a"))

    async def rotate_and_relay() -> dict[str, str]:
        rotating = asyncio.create_task(reader.log.rotate())
        while not rotating.done():
            await reader.log.beat("while it waits for the lock", idle=False)
        return await rotating

    assert list(reader.do(rotate_and_relay())) == ["messages_0"]
    assert value(conn, "SELECT trouble FROM outbox.relays") == "while it waits for the lock"
    assert reader.next() == ["next"]


def test_the_ring_turns_early_and_never_back(conn: Conn, reader: Reader) -> None:
    fill(conn, 150_000)
    reader.next()
    reader.do(reader.log.rotate())
    conn.execute(WRITE, ("next", "a"))
    assert sizes(conn) == [3, 1, 0, 0]
    assert value(conn, "SELECT max(id) FROM outbox.messages") == 1_000_000
    reader.do(reader.log.rotate())
    assert sizes(conn) == [0, 1, 0, 0]
    fill(conn, 1_999_990)
    reader.next()
    reader.do(reader.log.rotate())
    assert value(conn, "SELECT last_value FROM outbox.message_ids") == 1_999_992, "it is about to turn by itself"


def test_a_child_that_cannot_be_emptied_keeps_no_other_from_being_emptied(conn: Conn, reader: Reader) -> None:
    conn.execute("""
        CREATE FUNCTION outbox.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused by the user''s trigger'; END $$;
        CREATE TRIGGER refuse BEFORE TRUNCATE ON outbox.messages_0 EXECUTE FUNCTION outbox.refuse()""")
    for first in (1, 1_000_000, 2_000_000):
        fill(conn, first)
    reader.next()
    assert reader.do(reader.log.rotate()) == {"messages_0": "refused by the user's trigger"}
    assert sizes(conn) == [3, 0, 3, 0]
