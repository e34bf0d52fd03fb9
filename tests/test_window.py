"""The log in windows by two snapshots: nothing is skipped, a window reads the same again, the ring is emptied behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest
from pipelines import Post, deployed, value

from outbox.messages.log import Log, Outgoing, TakenOver, Window

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]
WRITE = "INSERT INTO outbox.messages (topic, key, payload) VALUES (%s, %s, '{}')"


class Reader:
    """One relay's log, driven step by step from a test without an event loop of its own."""

    def __init__(self, dsn: str, name: str = "default") -> None:
        self.runner = asyncio.Runner()
        self.log = Log(dsn, name, "test")

    def do(self, step: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(step)

    def begin(self) -> Window | None:
        self.do(self.log.connect())
        return self.do(self.log.take_over())  # type: ignore[no-any-return]

    def read(self, window: Window) -> list[Outgoing]:
        async def all_of_it() -> list[Outgoing]:
            return [message async for part in self.log.read(window) for message in part]

        return self.do(all_of_it())  # type: ignore[no-any-return]

    def next(self) -> list[str]:
        """Cut a window, read it, and move the cursor behind it; return its topics."""
        window = self.do(self.log.cut())
        if window is None:
            return []
        messages = self.read(window)
        self.do(self.log.advance(0, len(messages), {}, done=True))
        return [message.topic for message in messages]

    def close(self) -> None:
        self.do(self.log.close())
        self.runner.close()


Another = Callable[..., Reader]


@pytest.fixture
def another(dsn: str) -> Iterator[Callable[..., Reader]]:
    """Make further relays' logs; they are closed at the test's end."""
    made: list[Reader] = []

    def another(name: str = "default") -> Reader:
        made.append(Reader(dsn, name))
        return made[-1]

    yield another
    for reader in made:
        reader.close()


@pytest.fixture
def reader(another: Another) -> Reader:
    made = another()
    assert made.begin() is None
    return made


def test_messages_come_once_in_the_order_in_which_they_were_written(conn: Conn, reader: Reader) -> None:
    assert reader.next() == []
    for n in range(3):
        conn.execute(WRITE, (f"t{n}", "k"))
    assert reader.next() == ["t0", "t1", "t2"]
    assert reader.next() == []
    conn.execute(WRITE, ("t3", "k"))
    assert reader.next() == ["t3"]


def test_a_relay_from_now_on_leaves_out_what_was_committed_before(conn: Conn, connect: Connect, dsn: str) -> None:
    conn.execute(WRITE, ("before", "k"))
    under_way = connect(autocommit=False)
    under_way.execute(WRITE, ("under way", "k"))
    reader = Reader(dsn)
    reader.log = Log(dsn, "late", "test", from_now=True)
    try:
        assert reader.begin() is None
        conn.execute(WRITE, ("after", "k"))
        assert reader.next() == ["after"]
        under_way.commit()
        assert reader.next() == ["under way"]
        reader.do(reader.log.leave())
        conn.execute(WRITE, ("meanwhile", "k"))
        reader.begin()
        assert reader.next() == ["meanwhile"], "it is for a name that is new"
    finally:
        reader.close()


def test_a_transaction_that_stays_open_delays_only_its_own_messages(
    conn: Conn, connect: Connect, reader: Reader
) -> None:
    early = connect(autocommit=False)
    early.execute(WRITE, ("early", "a"))
    for n in range(5):
        conn.execute(WRITE, (f"t{n}", "b"))
        assert reader.next() == [f"t{n}"]
    early.execute(WRITE, ("later", "a"))
    assert reader.next() == []
    early.commit()
    assert reader.next() == ["early", "later"]
    assert reader.next() == []


def test_messages_of_a_rolled_back_transaction_are_never_seen(conn: Conn, connect: Connect, reader: Reader) -> None:
    undone = connect(autocommit=False)
    undone.execute(WRITE, ("undone", "a"))
    conn.execute(WRITE, ("t", "b"))
    assert reader.next() == ["t"]
    undone.rollback()
    assert reader.next() == []


def test_savepoints_make_no_difference(connect: Connect, reader: Reader) -> None:
    busy = connect(autocommit=False)
    with busy.transaction():
        busy.execute(WRITE, ("kept", "a"))
        with busy.transaction(force_rollback=True):
            busy.execute(WRITE, ("undone", "a"))
        with busy.transaction():
            busy.execute(WRITE, ("inner", "a"))
        assert reader.next() == []
    assert reader.next() == ["kept", "inner"]


def test_a_window_reads_the_same_again_whatever_was_committed_since(
    conn: Conn, connect: Connect, reader: Reader, another: Another
) -> None:
    open_ = connect(autocommit=False)
    open_.execute(WRITE, ("open", "a"))
    for n in range(10):
        conn.execute(WRITE, (f"t{n}", "b"))
    window = reader.do(reader.log.cut())
    first = reader.read(window)
    open_.commit()
    conn.execute(WRITE, ("new", "b"))
    assert reader.read(window) == first
    reader.do(reader.log.advance(first[3].id, 4, {}))
    reader.do(reader.log.leave())
    heir = another()  # after a crash: the same window, from where the cursor was
    again = heir.begin()
    assert again == Window(window.start, window.end, first[3].id)
    assert heir.read(again) == first[4:]
    heir.do(heir.log.advance(0, 6, {}, done=True))
    assert heir.next() == ["open", "new"]


def test_relays_of_other_names_each_get_every_message(conn: Conn, reader: Reader, another: Another) -> None:
    conn.execute(WRITE, ("t0", "a"))
    assert reader.next() == ["t0"]
    other = another("other")
    other.begin()
    conn.execute(WRITE, ("t1", "a"))
    assert other.next() == ["t0", "t1"]
    assert reader.next() == ["t1"]


def test_a_name_has_one_relay_and_the_one_before_is_fenced(conn: Conn, reader: Reader, another: Another) -> None:
    conn.execute(WRITE, ("t0", "a"))
    window = reader.do(reader.log.cut())
    second = another()
    with pytest.raises(TakenOver, match="runs elsewhere"):
        second.begin()
    conn.execute("UPDATE outbox.relays SET updated_at = now() - interval '6 s'")  # the first one's beat is late
    assert second.begin() == window
    for fenced in (
        reader.log.advance(0, 1, {}, done=True),
        reader.log.beat(None, False),
    ):
        with pytest.raises(TakenOver, match="was taken over"):
            reader.do(fenced)
    assert reader.do(reader.log.cut()) is None
    assert [message.topic for message in second.read(window)] == ["t0"]


def test_what_is_parked_moves_with_the_cursor_or_not_at_all(conn: Conn, reader: Reader) -> None:
    conn.execute(WRITE, ("bad", "k"))
    window = reader.do(reader.log.cut())
    (message,) = reader.read(window)
    conn.execute("UPDATE outbox.relays SET epoch = epoch + 1")
    with pytest.raises(TakenOver):
        reader.do(reader.log.advance(0, 0, {message.id: (message, "unroutable")}, done=True))
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0
    conn.execute("UPDATE outbox.relays SET epoch = epoch - 1")
    reader.do(reader.log.advance(0, 0, {message.id: (message, "unroutable")}, done=True))
    assert conn.execute("SELECT relay, topic, key, payload, reason FROM outbox.parked_messages").fetchall() == [
        ("default", "bad", "k", {}, "unroutable")
    ]
    assert value(conn, "SELECT window_end FROM outbox.relays") is None


def fill(conn: Conn, start: int, count: int = 3) -> None:
    """Write messages from an id on, and so into its child of the ring."""
    conn.execute("SELECT setval('outbox.message_ids', %s, false)", (start,))
    for n in range(count):
        conn.execute(WRITE, (f"t{start + n}", "a"))


def sizes(conn: Conn) -> list[int]:
    return [value(conn, f"SELECT count(*) FROM outbox.messages_{n}") for n in range(4)]


def test_a_child_is_emptied_when_every_relay_has_passed_it(conn: Conn, reader: Reader, another: Another) -> None:
    other = another("slow")
    other.begin()
    fill(conn, 1)
    fill(conn, 1_000_000)
    assert len(reader.next()) == 6
    assert reader.do(reader.log.rotate()) == []
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

    async def side_by_side() -> list[str]:
        rotation = asyncio.create_task(reader.log.rotate())
        while not rotation.done():
            conn.execute(WRITE, ("beside", "b"))
            window = await reader.log.cut()
            assert window is not None
            assert [part async for part in reader.log.read(window)]
            await reader.log.advance(0, 1, {}, done=True)
        return await rotation

    assert reader.do(side_by_side()) == ["messages_0"]
    assert reader.next() == [], "what was passed stays passed"


def test_a_rotation_that_waits_for_a_writer_holds_up_others_only_for_a_moment(
    conn: Conn, connect: Connect, reader: Reader
) -> None:
    fill(conn, 1)
    writer = connect(autocommit=False)
    writer.execute(WRITE, ("open", "a"))
    fill(conn, 1_000_000)
    reader.next()
    conn.execute("SET lock_timeout = '10s'")
    waits = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"

    async def beside_writers() -> list[str]:
        rotation = asyncio.create_task(reader.log.rotate())
        while not value(conn, waits):
            await asyncio.sleep(0)
            if rotation.done():  # this machine was too slow to see it wait
                rotation = asyncio.create_task(reader.log.rotate())
        conn.execute("INSERT INTO outbox.messages (id, topic) VALUES (9, 'same child'), (1000009, 'another')")
        return await rotation

    assert reader.do(beside_writers()) == ["messages_0"]
    assert reader.next() == ["same child", "another"]


def test_what_the_relay_does_while_a_child_cannot_be_had_is_done(conn: Conn, connect: Connect, reader: Reader) -> None:
    fill(conn, 1)
    fill(conn, 1_000_000)
    reader.next()
    connect(autocommit=False).execute("LOCK TABLE outbox.messages_0 IN ROW EXCLUSIVE MODE")
    conn.execute(WRITE, ("next", "a"))

    async def rotate_and_relay() -> list[str]:
        rotating = asyncio.create_task(reader.log.rotate())
        while not rotating.done():
            await reader.log.beat("while it waits for the lock", idle=False)
        return await rotating

    assert reader.do(rotate_and_relay()) == ["messages_0"]
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


@pytest.mark.parametrize("how", ["another cluster", "the future"])
def test_after_a_restore_every_message_that_is_there_is_relayed(conn: Conn, another: Another, how: str) -> None:
    first = another()
    first.begin()
    conn.execute(WRITE, ("before", "a"))
    first.next()
    first.do(first.log.leave())
    conn.execute(WRITE, ("waiting", "a"))
    if how == "another cluster":  # where transactions have other numbers
        conn.execute("UPDATE outbox.relays SET cluster = '1'")
        conn.execute("UPDATE outbox.messages SET xid = '999999999'")
    else:
        conn.execute("UPDATE outbox.relays SET window_start = '999999999:999999999:'")
    heir = another()
    assert heir.begin() is None
    assert heir.next() == ["before", "waiting"]
    conn.execute(WRITE, ("after", "a"))
    assert heir.next() == ["after"]


def test_messages_of_a_pipeline_are_in_the_window_of_their_change(conn: Conn, dsn: str, reader: Reader) -> None:
    from outbox.testing import drain

    posts = deployed(conn)
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(20)])
    drain(posts, dsn)
    assert reader.next() == ["posts.enriched"] * 20


def test_a_large_window_is_read_in_parts_by_one_sort(conn: Conn, reader: Reader) -> None:
    conn.execute("INSERT INTO outbox.messages (topic, payload) SELECT 't', '{}' FROM generate_series(1, 20000)")
    window = reader.do(reader.log.cut())

    async def sizes_of_parts() -> list[int]:
        return [len(part) async for part in reader.log.read(window)]

    parts = reader.do(sizes_of_parts())
    assert sum(parts) == 20_000
    assert max(parts) <= 5_000
