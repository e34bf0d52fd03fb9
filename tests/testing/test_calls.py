"""The function of a schedule, and the handler of a consumer, without a database or a broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from outbox import Delivery, HandlerError, InvalidInput, Pipeline, Tick
from outbox.testing import attempt_delivery, attempt_delivery_async, attempt_tick, attempt_tick_async

Conn = psycopg.Connection[Any]
AT = datetime(2030, 1, 1, 3, tzinfo=UTC)


def nightly(function: Any) -> Pipeline[dict[str, Any]]:
    shop = Pipeline("shop", initial="NEW", final={"DONE"})
    shop.every("0 3 * * *", name="nightly")(function)
    return shop


def test_a_tick_has_its_time_and_its_key() -> None:
    tick = attempt_tick(nightly(lambda tick: tick), "nightly", at=AT)
    assert (tick.schedule, tick.at, tick.idempotency_key) == ("shop.nightly", AT, f"shop.nightly:{AT.isoformat()}")
    assert attempt_tick(nightly(lambda tick: tick), "nightly").at.hour == 3


def test_what_a_tick_writes_is_in_the_caller_s_transaction_unless_it_raises(conn: Conn) -> None:
    def count() -> Any:
        return conn.execute("SELECT count(*) FROM outbox.messages").fetchone()

    def write(tick: Tick) -> None:
        tick.connection.execute("INSERT INTO outbox.messages (topic) VALUES ('t')")
        if tick.at != AT:
            raise KeyError("x")

    conn.autocommit = False
    attempt_tick(nightly(write), "nightly", at=AT, connection=conn)
    with pytest.raises(KeyError):
        attempt_tick(nightly(write), "nightly", connection=conn)
    assert count() == (1,)
    conn.rollback()
    assert count() == (0,)


def test_without_a_connection_the_use_of_it_says_so(conn: Conn) -> None:
    with pytest.raises(HandlerError, match=r"schedule shop\.nightly uses its connection: pass connection="):
        attempt_tick(nightly(lambda tick: tick.connection.execute("SELECT 1")), "nightly")
    with pytest.raises(InvalidInput, match="it has: nightly"):
        attempt_tick(nightly(print), "weekly")
    with pytest.raises(InvalidInput, match="time zone"):
        attempt_tick(nightly(print), "nightly", at=datetime(2030, 1, 1))

    async def tick(tick: Tick) -> None: ...

    with pytest.raises(InvalidInput, match="is sync"):
        attempt_tick(nightly(tick), "nightly", connection=conn)


def test_a_delivery_is_read_as_from_a_queue() -> None:
    class Posted(BaseModel):
        entity_id: str

    made: Delivery = attempt_delivery(
        lambda it: it, Posted(entity_id="a"), topic="posts", key="a", headers={"x": 1}, attempt=2
    )
    assert (made.topic, made.key, made.payload, made.attempt) == ("posts", "a", {"entity_id": "a"}, 2)
    assert made.headers["x"] == 1
    assert made.message_id.version == 7
    known = UUID("018f2a1e-7d3c-7000-8000-000000000000")
    assert attempt_delivery(lambda it: it.message_id, {}, message_id=known) == known


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(InvalidInput, match="payload"):
        attempt_delivery(print, object())
    with pytest.raises(Exception, match="id"):
        attempt_delivery(print, {}, message_id="no id")

    def use(delivery: Delivery) -> None:
        delivery.connection.execute("SELECT 1")

    with pytest.raises(HandlerError, match="the handler use uses its connection"):
        attempt_delivery(use, {})


def test_async_functions_run_in_a_loop_of_their_own_or_in_the_one_that_runs(dsn: str) -> None:
    async def handle(it: Any) -> Any:
        await asyncio.sleep(0)
        return it

    async def inside() -> None:
        with pytest.raises(RuntimeError, match="attempt_tick_async"):
            attempt_tick(nightly(handle), "nightly")
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            assert (await attempt_tick_async(nightly(handle), "nightly", connection=conn)).connection is conn
            assert (await attempt_delivery_async(handle, 3, connection=conn)).payload == 3
        assert (await attempt_delivery_async(lambda it: it, 3)).payload == 3

    assert attempt_tick(nightly(handle), "nightly", at=AT).at == AT
    assert attempt_delivery(handle, [1]).payload == [1]
    asyncio.run(inside())


def test_resources_are_those_of_the_test() -> None:
    assert attempt_tick(nightly(lambda tick: tick.resources), "nightly", resources="fake") == "fake"
    assert attempt_delivery(lambda delivery: delivery.resources, 1, resources="fake") == "fake"
