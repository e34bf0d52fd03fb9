"""What users write rightly: a type checker must find nothing here. Not run."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, assert_type
from uuid import UUID, uuid4

import psycopg
import sqlalchemy
from psycopg.rows import TupleRow
from pydantic import BaseModel, PostgresDsn, SecretStr

import outbox
from outbox import (
    Answer,
    Ask,
    Blob,
    Change,
    Child,
    Consumer,
    Delivery,
    Done,
    Go,
    NotDone,
    Pipeline,
    Reject,
    Run,
    Spawned,
    Submitted,
    SyncDelivery,
    SyncRun,
    SyncTick,
    Tick,
    WaitForApproval,
    WaitForChildren,
    WaitForSignal,
    Worker,
    testing,
)


class Order(BaseModel):
    total: int


class Line(BaseModel):
    product: str


class Status(enum.StrEnum):
    NEW = "NEW"
    DONE = "DONE"


orders = Pipeline("orders", data=Order, initial=Status.NEW, final={Status.DONE}, cancelled="GONE")
lines = Pipeline("lines", data=Line, initial="NEW", final={"DONE"})
plain = Pipeline("plain", initial="NEW", final={"DONE"})
anything = Pipeline("anything", data=Order | dict[str, int], initial="NEW")
nightly = Pipeline("nightly")


@orders.stage("data", on=Status.NEW, to="B")
async def gives_data(run: Run[Order]) -> Order:
    return run.data.model_copy(update={"total": 5})


@orders.stage("nothing", on="B", to="C", timeout=timedelta(seconds=5))
async def gives_nothing(run: Run[Order]) -> None:
    assert_type(run.data, Order)


@orders.stage("go", on="C", to={"D", "E"})
async def goes(run: Run[Order]) -> Go[Order]:
    if run.data.total < 0:
        raise Reject("too little")
    return Go("D", run.data) if run.data.total else Go("E")


@orders.stage("either", on="D", to={"E", "F"})
async def either(run: Run[Order]) -> Order | Go[Order] | WaitForSignal[Order] | None:
    if run.data.total > 5:
        return WaitForSignal("paid", to="F", status="E")
    return None


@orders.stage("ask", on="E", to="F")
async def asks(run: Run[Order]) -> WaitForApproval[Order]:
    return WaitForApproval("Ship it?", deadline=timedelta(days=3), on_deadline="DONE")


@orders.stage("wait", on="F", to="G")
def waits(run: Run[Order]) -> WaitForChildren[Order]:
    assert_type(run.spawn(lines, uuid4(), Line(product="x")), Spawned)
    run.spawn(lines, 5, {"product": "x"}, cancel="DONE")
    return WaitForChildren(to="G")


@orders.stage("plain", on="G", to="H")
def plain_data(run: Run[Order]) -> Order:
    return run.data


@orders.stage("mapping", on="H", to="I")
def mapping(run: SyncRun[Order]) -> dict[str, Any]:
    return {"total": 5}


@orders.stage("untyped", on="I", to="J")
def untyped(run: Any) -> Any:
    return run.data


class Handler:
    async def __call__(self, run: Run[Order]) -> None: ...

    def method(self, run: Run[Order]) -> None: ...


orders.stage("object", on="J", to="K")(Handler())
orders.stage("method", on="K", to="L")(Handler().method)
orders.stage("lambda", on="L", to="M")(lambda run: None)
orders.stage("lambda data", on="M", to="N")(lambda run: run.data)


def configured(limit: int, run: Run[Order]) -> Go[Order]:
    return Go("O")


orders.stage("partial", on="N", to="O")(partial(configured, 5))


@orders.stage("batch", on="O", to="P", transaction=True, batch=100)
async def batch(runs: list[Run[Order]]) -> list[Order | Go[Order] | None]:
    await runs[0].connection.execute("SELECT 1")
    return [run.data for run in runs]


@orders.stage("batch plain", on="P", to="Q", transaction=True, batch=100)
def batch_plain(runs: Sequence[SyncRun[Order]]) -> None:
    runs[0].connection.execute("SELECT 1")


@orders.stage("batch run", on="Q", to="R", transaction=True, batch=100)
def batch_run(runs: list[Run[Order]]) -> list[Order]:
    return [run.data for run in runs]


@orders.stage(
    "limits", on="R", to="S", rate="5/second", partition=lambda data: data.total, priority=lambda data: data.total
)
async def limits(run: Run[Order]) -> None: ...


@plain.stage("plain", on="NEW", to="DONE")
async def of_plain(run: Run[dict[str, Any]]) -> dict[str, Any]:
    return {**run.data, "more": 5}


@anything.stage("any", on="NEW", to="DONE")
async def of_anything(run: Run[Any]) -> None: ...


async def fetch(product: str, *, times: int = 1) -> Line:
    return Line(product=product * times)


def count(text: str) -> int:
    return len(text)


async def look_up(idempotency_key: str) -> Done[int] | NotDone | Ask:
    return Done(5) if idempotency_key else NotDone()


@orders.stage("inside", on="S", to="T", transaction=True)
async def inside(run: Run[Order]) -> None:
    assert_type(run.connection, psycopg.AsyncConnection[TupleRow])
    await run.connection.execute("SELECT %s", (run.data.total,))
    async with run.connection.transaction():
        pass
    assert_type(await run.once("a", fetch, "x", times=2), Line)
    assert_type(await run.once("b", count, "x"), int)
    assert_type(await run.effect("c", fetch, "x", times=2), Line)
    assert_type(await run.effect("d", count, "x", on_unknown=look_up), int)
    assert_type(await run.store(b"x"), Blob)
    assert_type(await run.load(await run.store([b"x"])), bytes)
    assert_type(await run.children(lines), list[Child[Line]])
    assert_type(await run.answers(), list[Answer])
    run.publish("done", {"a": 5}, key=run.idempotency_key)
    run.log.info("%s", run.entity_id)


class Clients:
    shop: str


@orders.stage("resources", on="X", to="Y", transaction=True)
async def with_resources(run: Run[Order, Clients]) -> Order:
    assert_type(run.resources.shop, str)
    run.on_commit(lambda: None)
    return run.data


@orders.stage("resources plain", on="Y", to="Z", transaction=True)
def plain_with_resources(run: SyncRun[Order, Clients]) -> None:
    assert_type(run.connection, psycopg.Connection[TupleRow])
    assert_type(run.resources, Clients)


@orders.stage("inside plain", on="T", to="U", transaction=True)
def inside_plain(run: SyncRun[Order]) -> None:
    assert_type(run.connection, psycopg.Connection[TupleRow])
    run.connection.execute("SELECT 1")
    assert_type(run.once("b", count, "x"), int)
    assert_type(run.effect("c", count, "x", on_unknown=Ask("Was it?", assignee="ann")), int)
    assert_type(run.load(run.store(b"x")), bytes)
    assert_type(run.children(lines), list[Child[Line]])
    assert_type(run.answers(), list[Answer])


@nightly.every("0 3 * * *")
async def at_night(tick: Tick) -> None:
    await tick.connection.execute("SELECT 1")
    await orders.submit(tick.connection, tick.idempotency_key, Order(total=5))


@nightly.every("0 4 * * *", name="later")
def at_night_too(tick: SyncTick) -> int:
    orders.submit(tick.connection, 5, Order(total=5))
    return 5


@nightly.every("0 5 * * *")
def without_connection(tick: Tick) -> None:
    print(tick.at)


@orders.on_change(Status.DONE)
async def done(run: Run[Change]) -> None:
    print(run.data.entity_id)


@orders.on_change("GONE")
def gone(run: Run[Change]) -> None: ...


async def handle(delivery: Delivery) -> None:
    await delivery.connection.execute("SELECT 1")


def handle_plain(delivery: SyncDelivery) -> None:
    delivery.connection.execute("SELECT 1")


Consumer("q", handle)
Consumer("q", handle_plain, dsn=lambda: "dbname=x")


async def tested(run: Run[Order], plain_run: SyncRun[Order]) -> None:
    total: int = (await gives_data(run)).total  # what a handler returns is known to who calls it
    status: str = (await goes(run)).status
    await gives_nothing(run)
    print(total, status, plain_data(plain_run).total)


async def dsn_async() -> str:
    return "dbname=x"


def calls(conn: psycopg.Connection[Any], url: sqlalchemy.URL, id: UUID) -> None:
    assert_type(orders.submit(conn, id, Order(total=5)), Submitted)
    orders.submit_many(conn, [(1, Order(total=5)), (id, {"total": 5}), ("a", Order(total=5))])
    outbox.signal(conn, orders, id, "paid")
    outbox.approve(conn, "orders", 5, by="sarah")
    orders.get(conn, id)
    testing.drain([orders, lines], url, concurrency=5, stages=["data"])
    for dsn in ("dbname=x", url, lambda: url, dsn_async, SecretStr("dbname=x"), PostgresDsn("postgresql://h/x")):
        print(dsn)
    Worker(orders, url)
    Worker(orders, lambda: url)
    Worker(orders, dsn_async, listen_dsn=SecretStr("dbname=x"))
    Worker([orders, lines, plain], PostgresDsn("postgresql://h/x"), release="v2")
