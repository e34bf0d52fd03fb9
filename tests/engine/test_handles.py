"""What a run gives back: handles of what it spawns, its children with their data; and pipelines of schedules alone."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from pydantic import BaseModel

from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import wait_for
from kit.waits import put_off
from outbox import (
    Child,
    DefinitionError,
    Go,
    InvalidInput,
    NotDeployed,
    Pipeline,
    Reject,
    Run,
    Spawned,
    SyncRun,
    SyncTick,
    Tick,
    WaitForApproval,
    WaitForChildren,
    Worker,
    deploy,
)

Conn = psycopg.Connection[Any]
KEY = UUID("0190a5a0-0000-7000-8000-000000000001")


class Line(BaseModel):
    product: str
    price: int | None = None


lines = Pipeline("lines", data=Line, initial="NEW", final={"PRICED", "UNKNOWN"})
others = Pipeline("others", initial="NEW", final={"DONE"})
others.allow("NEW", to="DONE")


@lines.stage("price", on="NEW", to={"PRICED", "UNKNOWN"})
async def price(run: Run[Line]) -> Go[Line]:
    if run.data.product == "?":
        return Go("UNKNOWN")
    return Go("PRICED", Line(product=run.data.product, price=len(run.data.product)))


class Order(BaseModel):
    products: list[str]
    total: int | None = None
    told: list[str] = []


def parent(*, sync: bool, transaction: bool = False) -> tuple[Pipeline[Order], list[Any]]:
    """Returns a pipeline that asks for the prices of its lines and adds them up, and what its handlers saw."""
    orders = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})
    seen: list[Any] = []

    @orders.stage("ask", on="NEW", to="WAITING")
    async def ask(run: Run[Order]) -> WaitForChildren[Order]:
        for number, product in enumerate(run.data.products):
            seen.append(run.spawn(lines, f"{run.entity_id}/{number}", Line(product=product)))
        seen.append(run.spawn(others, KEY, {}))
        seen.append(await run.children(lines))
        return WaitForChildren(to="READY", timeout=timedelta(hours=1), on_timeout="READY")

    def added(children: list[Child[Line]]) -> Order:
        seen.append(children)
        return Order(products=[], total=sum(child.data.price or 0 for child in children))

    if sync:

        @orders.stage("add", on="READY", to="DONE", transaction=transaction)
        def add(run: SyncRun[Order]) -> Order:
            return added(run.children(lines))

    else:

        @orders.stage("add", on="READY", to="DONE", transaction=transaction)
        async def add_async(run: Run[Order]) -> Order:
            return added(await run.children(lines))

    orders.allow("WAITING", to="READY")
    return orders, seen


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("sync", [False, True])
def test_a_join_gives_the_children_with_their_data(conn: Conn, dsn: str, sync: bool, transaction: bool) -> None:
    orders, seen = parent(sync=sync, transaction=transaction)
    deploy(conn, [lines, others, orders])
    orders.submit(conn, "o", Order(products=["apple", "?", "fig"]))
    drain([orders, lines], dsn)
    put_off(conn, 3600)
    wait_for(lambda: drain([orders, lines], dsn) and status_of(conn, "o") == "DONE", what="the timeout is over")
    *spawned, other, before, after = seen
    assert [(each.pipeline, each.entity_id, each.workflow_id) for each in spawned] == [
        ("lines", f"o/{n}", None) for n in range(3)
    ]
    assert isinstance(other, Spawned)
    assert other.entity_id == str(KEY)
    assert before == [], "those that an attempt spawns are there when it has committed"
    assert [(each.entity_id, each.status, each.ended, each.data.price) for each in after] == [
        ("o/0", "PRICED", True, 5), ("o/1", "UNKNOWN", True, None), ("o/2", "PRICED", True, 3)
    ]  # fmt: skip
    assert value(conn, "SELECT metadata ->> 'total' FROM outbox.workflow_states WHERE entity_id = 'o'") == "8"
    assert after[0].workflow_id == value(conn, "SELECT id FROM outbox.workflow_states WHERE entity_id = 'o/0'")


def test_a_child_that_is_still_at_work_has_not_ended(conn: Conn, dsn: str) -> None:
    found: list[Child[dict[str, Any]]] = []
    orders = Pipeline("orders", data=Order, initial="NEW", final={"DONE"})

    @orders.stage("ask", on="NEW", to="ASKED")
    async def ask(run: Run[Order]) -> None:
        run.spawn(others, "slow", {"a": 1})

    @orders.stage("look", on="ASKED", to="DONE")
    async def look(run: Run[Order]) -> None:
        found.extend(await run.children(others))

    deploy(conn, [others, orders])
    orders.submit(conn, "o", Order(products=[]))
    drain(orders, dsn)
    ((child,),) = (found,)
    assert (child.entity_id, child.status, child.ended, child.data) == ("slow", "NEW", False, {"a": 1})


def nightly() -> tuple[Pipeline[dict[str, Any]], list[Any]]:
    pipeline, ran = Pipeline("nightly"), []

    @pipeline.every("0 3 * * *")
    async def clean(tick: Tick) -> None:
        await tick.connection.execute("SELECT 1")
        ran.append(tick)

    @pipeline.every("0 4 * * *", name="plain")
    def plain(tick: SyncTick) -> None:
        tick.connection.execute("SELECT 1")
        ran.append(tick)

    return pipeline, ran


def test_a_pipeline_of_nothing_but_schedules_runs(conn: Conn, dsn: str) -> None:
    pipeline, ran = nightly()
    with pytest.raises(NotDeployed, match="nightly"):
        drain(pipeline, dsn)
    assert deployed(conn, pipeline) is pipeline
    conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 minute'")
    drain(pipeline, dsn)
    assert sorted(type(tick).__name__ for tick in ran) == ["SyncTick", "Tick"]

    async def beside() -> None:
        ran.clear()
        worker = Worker(pipeline, dsn)
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.to_thread(
                wait_for, lambda: value(conn, "SELECT count(*) FROM outbox.workers") == 1, what="it is there"
            )
            found = await asyncio.to_thread(Outbox(dsn), "status")
            assert "nightly" in found.out
        finally:
            worker.stop()
            await running

    asyncio.run(beside())
    assert not Outbox(dsn)("deploy", "--app", "apps.plain:app", code=None).err.count("NONE")


def test_nothing_can_start_in_it_and_nothing_else_can_be_defined_in_it(conn: Conn, dsn: str) -> None:
    pipeline, _ = nightly()
    deployed(conn, pipeline)
    with pytest.raises(InvalidInput, match="nightly has schedules only"):
        pipeline.submit(conn, "a", {})
    with pytest.raises(InvalidInput, match="nightly has schedules only"):
        pipeline.submit_many(conn, [("a", {})])
    for wrong in (
        lambda: pipeline.stage("act", on="NEW", to="DONE"),
        lambda: pipeline.allow("NEW", to="DONE"),
        lambda: Pipeline("x", final={"DONE"}),
        lambda: Pipeline("x", cancelled="GONE"),
    ):
        with pytest.raises(DefinitionError, match="initial="):
            wrong()
    with pytest.raises(DefinitionError, match="there is no stage to work on"):
        Worker(Pipeline("empty"), dsn)
    with pytest.raises(DefinitionError, match="unknown stage"):
        Worker(pipeline, dsn, stages=["act"])


def asking(name: str) -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline(name, initial="NEW", final={"SHIPPED", "REJECTED", "LATE"})

    @pipeline.stage("ask", on="NEW", to="WAITING")
    async def ask(run: Run[Any]) -> WaitForApproval[Any]:
        if "no" in run.data:
            raise Reject("asks nothing")
        return WaitForApproval("Ship it?", options={"approve": "SHIPPED", "reject": "REJECTED"})

    pipeline.allow("WAITING", to={"SHIPPED", "REJECTED"})
    pipeline.deadline("WAITING", to="LATE", days=3)
    return pipeline


def test_approve_finds_the_one_pipeline_that_asks(conn: Conn, dsn: str) -> None:
    pipelines = [asking(name) for name in ("a", "b", "c")]
    deploy(conn, pipelines)
    command = Outbox(dsn)
    for pipeline in pipelines:
        pipeline.submit(conn, "one", {} if pipeline.name == "b" else {"no": 1})
        pipeline.submit(conn, "two", {} if pipeline.name != "b" else {"no": 1})
        pipeline.submit(conn, "none", {"no": 1})
    drain(pipelines, dsn)
    assert command("approve", "one").out.startswith("one: approve -> SHIPPED")
    said = command.fails("approve", "two")
    assert said == 'outbox: entity "two" has asked in several pipelines (a, c): say which with --pipeline'
    assert "is in several pipelines, and has asked in none (a, b, c)" in command.fails("reject", "none")
    assert "SHIPPED" in command("decide", "two", "approve", "--pipeline", "c").out
    assert "REJECTED" in command("reject", "two").out, "only one still asks"
    assert "no workflow of entity" in command.fails("approve", "nobody")


def test_the_deadline_of_a_pipeline_shows_where_its_questions_do(conn: Conn, dsn: str) -> None:
    pipeline = asking("a")
    deployed(conn, pipeline)
    pipeline.submit(conn, "x", {})
    drain(pipeline, dsn)
    until = value(conn, "SELECT deadline FROM outbox.jobs")
    assert until is not None
    assert value(conn, "SELECT deadline FROM outbox.approvals") == until
    assert value(conn, "SELECT until FROM outbox.waiting") == until
    command = Outbox(dsn)
    (asked,) = command("approvals", "--json").json
    assert asked["deadline"] is not None
    assert "3d" in command("approvals").out or "2d" in command("approvals").out
    assert value(conn, "SELECT asked_at <= now() FROM outbox.approvals"), (
        "the deadline is not taken for the time of asking"
    )
