"""One handler without a database: what it gets, what it leaves, and what the engine would refuse."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from pydantic import BaseModel

from kit.pipelines import Post, make_posts
from outbox import (
    Backoff,
    Change,
    Go,
    HandlerError,
    InvalidInput,
    Pipeline,
    Reject,
    Retry,
    Run,
    SyncRun,
    WaitForApproval,
    WaitForSignal,
)
from outbox.testing import Attempt, Published, Spawned, attempt, attempt_async, attempt_batch, attempt_batch_async

Conn = psycopg.Connection[Any]


class Order(BaseModel):
    total: int = 5
    note: str | None = None


def shop(handler: Any, **options: Any) -> Pipeline[Order]:
    orders = Pipeline("orders", data=Order, initial="NEW", final={"DONE", "LOST"})
    orders.stage("work", **{"on": "NEW", "to": "DONE", **options})(handler)
    orders.allow("ASKED", to={"DONE", "LOST"})
    orders.stage("later", on="LATER", to="DONE")(lambda run: None)
    return orders


def test_an_attempt_has_what_the_handler_leaves() -> None:
    made = attempt(make_posts(), "enrich", Post(content="hello"), entity_id="post_1")
    assert made.status == "ENRICHED"
    assert made.data == Post(content="hello", enrichment={"length": 5})
    assert made.messages == [Published("posts.enriched", "post_1", {"entity_id": "post_1"})]
    assert made.outcome == made.data
    assert (made.spawned, made.kept, made.progress, made.until) == ([], {}, None, None)


def test_data_may_be_a_mapping_and_is_read_as_a_submitted_one_is() -> None:
    assert attempt(make_posts(), "decide", {"content": "risky"}).outcome == Go("WAITING_FOR_REVIEW")
    with pytest.raises(InvalidInput, match="content"):
        attempt(make_posts(), "decide", {"content": 3})


def test_data_that_was_changed_and_not_returned_is_as_it_was() -> None:
    def work(run: Run[Order]) -> None:
        run.data.total = 99

    assert attempt(shop(work), "work", Order(total=5)).data == Order(total=5)


def test_data_is_what_the_next_stage_reads() -> None:
    class Small(BaseModel):
        model_config = {"extra": "ignore"}
        total: int

    small = Pipeline("small", data=Small, initial="NEW", final={"DONE"}, version=2)
    small.migrate_data(1, lambda old: old)
    small.stage("work", on="NEW", to="DONE")(lambda run: {"total": "7", "lost": 1})
    assert attempt(small, "work", Small(total=1)).data == Small(total=7)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (Go("NOWHERE"), "may not go to 'NOWHERE'"),
        ("text", "data that can't be stored"),
        ({"total": "many"}, "data that can't be stored"),
        (WaitForSignal("paid", to="PAID"), "ASKED"),
    ],
)
def test_what_the_engine_would_refuse_is_an_error(returned: Any, told: str) -> None:
    to = "ASKED" if isinstance(returned, WaitForSignal) else "DONE"
    with pytest.raises(HandlerError, match=told):
        attempt(shop(lambda run: returned, to=to), "work", Order())


@pytest.mark.parametrize("error", [KeyError("x"), Retry(after=5), Reject("no"), SystemExit(3)])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_handler_raises_is_raised(error: BaseException, is_async: bool) -> None:
    def work(run: Run[Order]) -> None:
        raise error

    async def work_async(run: Run[Order]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        attempt(shop(work_async if is_async else work), "work", Order())
    assert raised.value is error


def test_kept_results_are_not_made_again() -> None:
    calls: list[str] = []

    def draft(text: str) -> Order:
        calls.append(text)
        return Order(total=8, note=text)

    async def work(run: Run[Order]) -> Order:
        await run.once("plain", len, "four")
        return await run.once("draft", draft, "hello")  # type: ignore[no-any-return]

    first = attempt(shop(work), "work", Order())
    assert first.kept == {"draft": Order(total=8, note="hello"), "plain": 4}
    second = attempt(shop(work), "work", Order(), attempt=2, kept=first.kept)
    assert (second.data, second.kept, calls) == (first.data, first.kept, ["hello"])


@pytest.mark.parametrize("is_async", [False, True])
def test_large_contents_and_results_come_back_without_a_database(is_async: bool) -> None:
    content = b"content" * 100_000

    def work(run: SyncRun[Order]) -> Order:
        blob = run.store(content)
        assert run.load(blob) == b"".join(run.stream(blob)) == content
        assert run.once("large", lambda: "x" * 100_000) == "x" * 100_000
        return Order(total=blob.size)

    async def work_async(run: Run[Order]) -> Order:
        blob = await run.store(content)
        assert await run.load(blob) == b"".join([part async for part in run.stream(blob)]) == content
        return Order(total=blob.size)

    assert attempt(shop(work_async if is_async else work), "work", Order()).data == Order(total=700_000)


def test_a_result_that_cannot_be_kept_and_a_key_of_two_functions_are_refused() -> None:
    def work(run: Run[Order]) -> None:
        run.once("a", len, "x")
        run.once("a", str, "x")

    with pytest.raises(HandlerError, match="give another function another key"):
        attempt(shop(work), "work", Order())
    with pytest.raises(InvalidInput, match="once"):
        attempt(shop(lambda run: run.once("a", object)), "work", Order())


def test_children_progress_and_log(caplog: pytest.LogCaptureFixture) -> None:
    lines = Pipeline("lines", data=Order, initial="NEW", final={"GONE"})

    def work(run: Run[Order]) -> None:
        run.spawn(lines, "line_1", Order(total=1), cancel="GONE")
        run.progress("half")
        run.progress("whole")
        run.log.warning("at work")

    with caplog.at_level(logging.WARNING):
        made = attempt(shop(work), "work", Order(), attempt=2)
    assert made.spawned == [Spawned("lines", "line_1", {"total": 1, "note": None}, "GONE")]
    assert made.progress == "whole"
    assert "orders.work entity #2: at work" in caplog.text


def test_the_run_is_the_engine_s() -> None:
    seen: list[Any] = []

    def work(run: Run[Order]) -> None:
        seen.append((run.status, run.attempt, run.stage, run.pipeline, run.entity_id, run.idempotency_key))

    orders = shop(work, running="WORKING", retry=Backoff(attempts=3))
    attempt(orders, "work", Order(), attempt=3, entity_id="a")
    attempt(orders, "work", Order(), entity_id="a")
    assert seen[0][:5] == ("WORKING", 3, "work", "orders", "a")
    assert seen[0][5] == seen[1][5], "the same in every attempt"
    with pytest.raises(ValueError, match="attempt="):
        attempt(orders, "work", Order(), attempt=4)


NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("returned", "to", "until"),
    [
        (Go("LATER", after=timedelta(hours=3)), "LATER", NOW + timedelta(hours=3)),
        (Go("LATER", at=NOW + timedelta(days=1)), "LATER", NOW + timedelta(days=1)),
        (WaitForSignal("paid", to="DONE", timeout=timedelta(days=2), on_timeout="LOST"), "ASKED", NOW + timedelta(days=2)),
        (WaitForApproval("Sure?", options={"yes": "DONE"}, deadline=timedelta(1), on_deadline="LOST"), "ASKED", NOW + timedelta(1)),
        (WaitForSignal("paid", to="DONE"), "ASKED", None),
    ],
)  # fmt: skip
def test_until_is_when_the_wait_ends_by_itself(returned: Any, to: str, until: datetime | None) -> None:
    made = attempt(shop(lambda run: returned, to=to), "work", Order(), now=NOW)
    assert (made.status, made.until, made.outcome) == (to, until, returned)


def test_plain_functions_run_in_the_calling_thread_or_beside_the_loop() -> None:
    threads: list[threading.Thread] = []
    orders = shop(lambda run: threads.append(threading.current_thread()))

    async def both() -> Attempt[Order]:
        return await attempt_async(orders, "work", Order())

    attempt(orders, "work", Order())
    assert threads[0] is threading.main_thread()
    assert asyncio.run(both()).status == "DONE"
    assert threads[1] is not threading.main_thread()


def test_in_a_running_loop_attempt_says_what_to_await() -> None:
    async def work(run: Run[Order]) -> None: ...

    async def test() -> None:
        with pytest.raises(RuntimeError, match=r"await outbox\.testing\.attempt_async"):
            attempt(shop(work), "work", Order())
        assert (await attempt_async(shop(work), "work", Order())).status == "DONE"

    asyncio.run(test())


def test_a_batch_has_an_attempt_for_each_run(conn: Conn) -> None:
    conn.autocommit = False

    def work(runs: list[Run[Order]]) -> list[Order]:
        return [Order(total=run.data.total * 2, note=run.entity_id) for run in runs]

    orders = shop(work, transaction=True, batch=10)
    made = attempt_batch(orders, "work", [Order(total=1), {"total": 2}], connection=conn, entity_ids=["a", "b"])
    assert [each.data for each in made] == [Order(total=2, note="a"), Order(total=4, note="b")]
    with pytest.raises(InvalidInput, match="call attempt_batch"):
        attempt(orders, "work", Order(), connection=conn)
    with pytest.raises(InvalidInput, match=r"call attempt$"):
        attempt_batch(make_posts(), "enrich", [Post()])
    with pytest.raises(InvalidInput, match="1 to 10"):
        attempt_batch(orders, "work", [], connection=conn)
    with pytest.raises(HandlerError, match="1 results for 2 runs"):
        attempt_batch(shop(lambda runs: [None], transaction=True, batch=9), "work", [Order()] * 2, connection=conn)


def test_a_stage_with_a_transaction_writes_into_the_caller_s(conn: Conn) -> None:
    def work(run: Run[Order]) -> None:
        run.connection.execute("INSERT INTO outbox.messages (topic) VALUES ('t')")
        if run.data.note:
            raise KeyError(run.data.note)

    orders = shop(work, transaction=True)
    count = "SELECT count(*) FROM outbox.messages"
    conn.autocommit = False
    conn.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
    attempt(orders, "work", Order(), connection=conn)
    assert conn.execute(count).fetchone() == {"count": 1}
    with pytest.raises(KeyError):
        attempt(orders, "work", Order(note="fails"), connection=conn)
    assert conn.execute(count).fetchone() == {"count": 1}
    conn.rollback()
    assert conn.execute(count).fetchone() == {"count": 0}


def test_a_connection_that_is_missing_or_of_the_other_kind_is_said(conn: Conn, dsn: str) -> None:
    async def work(run: Run[Order]) -> None: ...

    with pytest.raises(InvalidInput, match=r"stage orders.work has transaction=True: pass an async psycopg connection"):
        attempt(shop(work, transaction=True), "work", Order())
    with pytest.raises(InvalidInput, match=r"is sync, and stage orders.work"):
        attempt(shop(work, transaction=True), "work", Order(), connection=conn)
    with pytest.raises(InvalidInput, match="has none"):
        attempt(shop(work), "work", Order(), connection=conn)
    with pytest.raises(InvalidInput, match="is a DSN: pass a connection"):
        attempt(shop(work, transaction=True), "work", Order(), connection=dsn)
    with pytest.raises(InvalidInput, match="is in autocommit, and no transaction is open"):
        attempt(shop(lambda run: None, transaction=True), "work", Order(), connection=conn)

    async def awaited() -> Attempt[Order]:
        async with await psycopg.AsyncConnection.connect(dsn) as other:
            return await attempt_async(shop(work, transaction=True), "work", Order(), connection=other)

    assert asyncio.run(awaited()).status == "DONE"


def test_an_async_batch(dsn: str) -> None:
    async def work(runs: list[Run[Order]]) -> None:
        await runs[0].connection.execute("SELECT 1")

    async def awaited() -> list[Attempt[Order]]:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            orders = shop(work, transaction=True, batch=2)
            return await attempt_batch_async(orders, "work", [Order(), Order()], connection=conn)

    assert [made.status for made in asyncio.run(awaited())] == ["DONE", "DONE"]


def test_a_reaction_is_a_pipeline_of_its_own() -> None:
    orders = shop(lambda run: None)
    told: list[str] = []

    @orders.on_change("DONE")
    def tell(run: Run[Change]) -> None:
        told.append(run.data.status)

    change = Change(
        pipeline="orders", entity_id="a", workflow_id="0d6e9dd5-5b4f-5c0b-9a33-3d5fd5f7a1d4", from_status="NEW",  # type: ignore[arg-type]
        status="DONE", version=2, actor="me", reason=None, at=NOW, data={},
    )  # fmt: skip
    assert attempt(orders.reactions["tell"], "tell", change).status == "DONE"
    assert told == ["DONE"]


def test_a_stage_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match="no stage 'enrihc'; it has: enrich, decide, act"):
        attempt(make_posts(), "enrihc", Post())


def test_what_runs_around_runs_around_and_resources_are_those_of_the_test() -> None:
    entered: list[str] = []

    @contextmanager
    def around(run: Run[Order]) -> Iterator[None]:
        entered.append(run.entity_id)
        yield

    orders = Pipeline("orders", data=Order, initial="NEW", final={"DONE"}, around=around, lifespan=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    orders.stage("work", on="NEW", to="DONE")(lambda run: Order(note=run.resources))
    assert attempt(orders, "work", Order(), entity_id="a", resources="fake").data.note == "fake"
    assert entered == ["a"]
    with pytest.raises(HandlerError, match="no resources"):
        attempt(orders, "work", Order())


def test_the_status_of_a_stage_that_takes_several_is_to_be_said() -> None:
    several: Pipeline[Post] = Pipeline("several", data=Post, initial="NEW", final={"DONE"})

    @several.stage("agent", on={"NEW", "ANSWERED"}, to={"ASKED", "DONE"})
    def agent(run: Run[Post]) -> Go[Post]:
        return Go("ASKED" if run.status == "NEW" else "DONE")

    several.allow("ASKED", to="ANSWERED")
    assert attempt(several, "agent", Post(), status="NEW").status == "ASKED"
    assert attempt(several, "agent", Post(), status="ANSWERED").status == "DONE"
    with pytest.raises(InvalidInput, match=r"stage several\.agent takes: ANSWERED, NEW"):
        attempt(several, "agent", Post())
    with pytest.raises(InvalidInput, match=r"stage several\.agent takes: ANSWERED, NEW"):
        attempt(several, "agent", Post(), status="DONE")
