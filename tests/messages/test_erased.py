"""A relay and an erasure of the workflow whose messages it has: what it has not sent goes, and what it may send is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kit.log import Reader
from kit.pipelines import deployed, value
from kit.servers import DEADLINE, wait_for
from outbox import Pipeline
from outbox.messages.target import Outgoing, Unsent

Conn = psycopg.Connection[Any]


@pytest.fixture
def people(conn: Conn) -> Pipeline[Any]:
    people = deployed(conn, Pipeline("people", initial="NEW", final={"DONE"}, cancelled="CANCELLED"))
    people.allow("NEW", to="DONE")
    people = deployed(conn, people)
    people.submit(conn, "ann", {})
    conn.execute(
        "INSERT INTO outbox.messages (topic, key, payload, workflow_id) SELECT 't', 'ann', '{\"secret\": 7}', id FROM outbox.workflow_states"
    )
    return people


@pytest.fixture
def reader(dsn: str) -> Iterator[Reader]:
    reader = Reader(dsn)
    reader.begin()
    yield reader
    reader.close()


def parked(message: Outgoing) -> dict[int, Unsent]:
    return {message.id: Unsent(message, "no queue takes it")}


@pytest.fixture
def beside(conn: Conn, connect: Callable[..., Conn], people: Pipeline[Any]) -> Iterator[Callable[[], Any]]:
    """Erases in a transaction that commits when somebody waits for it; returns what was told when all is over."""
    other, told = connect(autocommit=False), []
    waiting = (
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )

    def end() -> None:
        wait_for(lambda: value(conn, waiting), what="the relay waits for the erasure")
        other.commit()

    thread = threading.Thread(target=end)

    def begin() -> Any:
        told.append(people.erase(other, "ann"))
        thread.start()
        return told

    yield begin
    thread.join(DEADLINE)


def test_a_message_that_is_parked_goes_with_its_workflow(conn: Conn, people: Pipeline[Any], reader: Reader) -> None:
    (message,) = reader.read(reader.do(reader.log.cut()))
    reader.do(reader.log.advance(0, 0, parked(message), done=True))
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages WHERE workflow_id IS NOT NULL") == 1
    erased = people.erase(conn, "ann")
    assert (erased.parked, erased.unsent, erased.published) == (1, 0, {})
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0


def test_a_message_that_is_being_parked_while_its_workflow_is_erased_is_not_parked(
    conn: Conn, reader: Reader, beside: Callable[[], Any]
) -> None:
    (message,) = reader.read(reader.do(reader.log.cut()))
    (erased,) = beside()
    reader.do(reader.log.advance(0, 0, parked(message), done=True))
    assert erased.published == {"t": 1}, "a relay has read it, and may have sent it"
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 0
    assert reader.next() == []


def test_a_relay_gets_no_message_that_is_told_to_be_unsent(reader: Reader, beside: Callable[[], Any]) -> None:
    (erased,) = beside()
    assert (erased.unsent, erased.published) == (1, {})
    assert reader.next() == []


def test_messages_without_a_workflow_are_parked_as_ever(conn: Conn, people: Pipeline[Any], reader: Reader) -> None:
    conn.execute("UPDATE outbox.messages SET workflow_id = NULL")
    (message,) = reader.read(reader.do(reader.log.cut()))
    reader.do(reader.log.advance(0, 0, parked(message), done=True))
    people.erase(conn, "ann")
    assert value(conn, "SELECT count(*) FROM outbox.parked_messages") == 1
