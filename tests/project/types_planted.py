"""Errors that users make, each on a line that says so: a type checker must find these and no others. Not run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from pydantic import BaseModel

import outbox
from outbox import Consumer, Delivery, Go, Pipeline, Run, SyncRun, SyncTick, Tick, WaitForSignal, Worker, testing


class Order(BaseModel):
    total: int


class Line(BaseModel):
    product: str


orders = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})
lines = Pipeline("lines", data=Line, initial="NEW", final={"DONE"})


@orders.stage("other", on="A", to="B")  # planted
async def of_another_pipeline(run: Run[Line]) -> None: ...


@orders.stage("none", on="B", to="C")  # planted
async def without_a_run() -> None: ...


@orders.stage("two", on="C", to="D")  # planted
async def of_two(run: Run[Order], more: int) -> None: ...


@orders.stage("plain", on="D", to="E")  # planted
def plain_of_another(run: Run[Line]) -> None: ...


@orders.stage("number", on="E", to="F")  # planted
async def a_number(run: Run[Order]) -> int:
    return 5


@orders.stage("plain number", on="F", to="G")  # planted
def a_plain_number(run: Run[Order]) -> int:
    return 5


@orders.stage("go", on="G", to="H")  # planted
async def goes_with_another(run: Run[Order]) -> Go[Line]:
    return Go("H", Line(product="x"))


@orders.stage("wait", on="H", to="I")  # planted
async def waits_with_another(run: Run[Order]) -> WaitForSignal[Line]:
    return WaitForSignal("paid", to="I", data=Line(product="x"))


@orders.stage("batch", on="I", to="J", transaction=True, batch=5)  # planted
async def one_of_a_batch(run: Run[Order]) -> None: ...


@orders.stage("single", on="J", to="K", transaction=True)  # planted
async def a_list_of_one(runs: list[Run[Order]]) -> None: ...


@orders.stage("sync", on="K", to="L", transaction=True)  # planted
async def async_of_sync_run(run: SyncRun[Order]) -> None: ...


orders.stage("field", on="L", to="M", rate="1/second", partition=lambda data: data.totl)  # planted
orders.stage("option", on="L", to="M", timout=5)  # planted


async def fetch(product: str) -> int:
    return 5


@orders.stage("inside", on="M", to="N", transaction=True)
async def inside(run: Run[Order]) -> None:
    await run.once("a", fetch, 3)  # planted
    await run.once("b", fetch)  # planted
    price: str = await run.once("c", fetch, "x")  # planted
    run.spawn(lines, "x", Order(total=5))  # planted
    run.spawn(lines, b"x", Line(product="x"))  # planted
    run.once("d", fetch, "x")  # planted
    run.connection.execute("SELECT 1")  # planted
    await run.connection.exequte("SELECT 1")  # planted
    print(run.data.totl)  # planted
    for child in await run.children(lines):
        print(child.data.total)  # planted
    print(price)


@orders.stage("inside plain", on="N", to="O", transaction=True)
def inside_plain(run: SyncRun[Order]) -> None:
    run.connection.exequte("SELECT 1")  # planted
    price: str = run.once("a", len, "x")  # planted
    for child in run.children(lines):
        print(child.data.total)  # planted
    print(price)


@orders.every("0 * * * *")  # planted
async def of_a_number(tick: int) -> None: ...


@orders.every("0 * * * *")  # planted
async def of_nothing() -> None: ...


@orders.every("0 * * * *")
async def tick(tick: Tick) -> None:
    tick.connection.execute("SELECT 1")  # planted


@orders.every("0 * * * *")
def plain_tick(tick: SyncTick) -> None:
    tick.connection.exequte("SELECT 1")  # planted


@orders.on_change("DONE")  # planted
async def of_the_data(run: Run[Order]) -> None: ...


async def handle(delivery: Delivery) -> None:
    delivery.connection.execute("SELECT 1")  # planted


async def handle_nothing() -> None: ...


Consumer("q", handle_nothing)  # planted


async def calls(conn: psycopg.AsyncConnection[Any], plain: psycopg.Connection[Any]) -> None:
    await orders.submit(conn, "a", Line(product="x"))  # planted
    orders.submit(plain, "a", Line(product="x"))  # planted
    orders.submit(plain, 5.0, Order(total=5))  # planted
    orders.submit(conn, "a", Order(total=5))  # planted
    outbox.signal(conn, orders, "a", "paid")  # planted
    outbox.approve(plain, orders, "a", byy="sarah")  # planted
    status: int = outbox.approve(plain, orders, "a", by="sarah")  # planted
    testing.drain(orders, "dbname=x", concurency=5)  # planted
    Worker(orders, 5)  # planted
    Worker(orders, "dbname=x", stages="enrich", now=datetime.now(UTC))  # planted
    print(status)
