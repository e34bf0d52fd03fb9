"""The log in windows by two snapshots: nothing is skipped, a window reads the same again, the ring is emptied behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.log import WRITE, Reader
from kit.pipelines import Post, deployed, value
from outbox.errors import TakenOver
from outbox.messages import log
from outbox.messages.log import Log, Window
from outbox.messages.target import Lease, Unsent

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]


Another = Callable[..., Reader]


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
    reader.log = Log(dsn, "late", "test", Lease(), from_now=True)
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


def test_a_name_has_one_relay_and_the_one_before_is_fenced(
    conn: Conn, reader: Reader, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LEASE", 3600.0)  # which no slow machine lets expire
    conn.execute(WRITE, ("t0", "a"))
    window = reader.do(reader.log.cut())
    second = another()
    with pytest.raises(TakenOver, match="runs elsewhere"):
        second.begin()
    conn.execute("UPDATE outbox.relays SET updated_at = now() - interval '2 hours'")  # the first one's beat is late
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
        reader.do(reader.log.advance(0, 0, {message.id: Unsent(message, "unroutable")}, done=True))
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0
    conn.execute("UPDATE outbox.relays SET epoch = epoch - 1")
    reader.do(reader.log.advance(0, 0, {message.id: Unsent(message, "unroutable")}, done=True))
    assert conn.execute("SELECT relay, topic, key, payload, reason FROM outbox.parked_messages").fetchall() == [
        ("default", "bad", "k", {}, "unroutable")
    ]
    assert value(conn, "SELECT window_end FROM outbox.relays") is None


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


@pytest.mark.parametrize("time", ["infinity", "-infinity", "12000-01-01", "0044-03-15 BC", "9999-12-31 23:59:59+00"])
def test_a_message_of_a_time_that_only_postgres_can_tell_stops_no_other(
    conn: Conn, reader: Reader, outbox: Outbox, time: str
) -> None:
    """The log refuses such a time; it may be there from before it did."""
    write = "INSERT INTO outbox.messages (topic, payload, created_at) VALUES ('odd', '{}', %s)"
    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute(write, [time])
    conn.execute("ALTER TABLE outbox.messages DROP CONSTRAINT messages_created_at_readable")
    conn.execute(WRITE, ("before", "k"))
    conn.execute(write, [time])
    conn.execute(WRITE, ("after", "k"))
    said = [finding["what"] for finding in outbox("doctor", "--json", code=None).json]
    assert not any("inf" in line.replace("Postgres", "") for line in said)
    assert reader.next() == ["before", "odd", "after"]


def test_a_relay_whose_session_was_cut_takes_its_own_name_back_at_once(
    conn: Conn, reader: Reader, another: Callable[..., Reader]
) -> None:
    conn.execute(WRITE, ("a", "k"))
    window = reader.do(reader.log.cut())
    conn.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'outbox relay' AND datname = current_database()"
    )
    reader.do(reader.log.close())
    assert reader.begin() == window, "it goes on with its window"
    with pytest.raises(TakenOver):
        another().begin()


def test_what_a_cut_session_of_the_same_relay_still_does_moves_nothing(conn: Conn, dsn: str, reader: Reader) -> None:
    """Its statement may be on its way when the relay has connected again, and has the name in a new epoch."""
    conn.execute(WRITE, ("a", "k"))
    reader.do(reader.log.cut())
    former = reader.log._epoch
    reader.begin()
    assert reader.log._epoch > former
    reader.log._epoch = former
    with pytest.raises(TakenOver):
        reader.do(reader.log.advance(0, 1, {}, done=True))


def test_the_same_epoch_of_another_relay_is_not_its_own(
    conn: Conn, reader: Reader, another: Callable[..., Reader]
) -> None:
    """A server that was failed over to lacks the take-over, and gives its epoch to the next one that comes."""
    conn.execute("UPDATE outbox.relays SET epoch = epoch - 1, owner = NULL, nonce = NULL")
    heir = another()
    heir.begin()
    assert heir.log._epoch == reader.log._epoch
    conn.execute(WRITE, ("a", "k"))
    assert reader.do(reader.log.cut()) is None
    with pytest.raises(TakenOver):
        reader.do(reader.log.beat(None, False))
    assert heir.do(heir.log.cut()) is not None
    with pytest.raises(TakenOver):
        reader.do(reader.log.advance(0, 1, {}, done=True))
    reader.do(reader.log.leave())
    heir.do(heir.log.beat(None, False))
