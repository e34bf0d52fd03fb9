"""`in_step(run)`: what Django's ORM writes in a handler commits with the status change, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import DataError, IntegrityError, connection, connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.db.transaction import TransactionManagementError

from apps.django_shop.models import Order
from kit import django_project
from kit.pipelines import drain
from kit.servers import wait_for
from outbox import Backoff, LeaseLost, Pipeline, Run, Tick, deploy
from outbox.django import in_step

Conn = psycopg.Connection[Any]
Handler = Callable[[Run[Any]], Any]


@pytest.fixture
def shop(dsn: str) -> Iterator[str]:
    with django_project.shop(dsn):
        yield dsn


class Steps:
    """A pipeline whose one stage has this handler, run for an entity, with one attempt."""

    def __init__(self, dsn: str, conn: Conn, handler: Handler, *entities: str, **options: Any) -> None:
        pipeline = Pipeline("steps", initial="NEW", final={"DONE"})
        pipeline.stage(
            "work", on="NEW", to="DONE", transaction=True, retry=Backoff(first=0, jitter=0, attempts=1), **options
        )(handler)
        deploy(conn, pipeline)
        pipeline.submit_many(conn, [(entity, {}) for entity in entities or ("e",)])
        self.counts = drain(pipeline, dsn).counts
        self.error = "".join(row[0] for row in conn.execute("SELECT error FROM outbox.dead_jobs").fetchall())


@pytest.fixture
def step(shop: str, conn: Conn) -> Callable[..., Steps]:
    return lambda handler, *entities, **options: Steps(shop, conn, handler, *entities, **options)


def numbers(conn: Conn) -> list[str]:
    return [row[0] for row in conn.execute("SELECT number FROM django_shop_order ORDER BY number").fetchall()]


def fail() -> None:
    raise ValueError("after the commit")


def make(number: str = "o-1") -> Order:
    return Order.objects.create(number=number)


def test_what_the_orm_writes_commits_with_the_status(step: Callable[..., Steps], conn: Conn) -> None:
    seen: list[int] = []

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make()
            Order.objects.filter(number="o-1").update(paid=F("paid") + 5)
            seen.append(Order.objects.select_for_update().get(number="o-1").paid)
            seen.append(len(list(Order.objects.iterator(chunk_size=1))))
        seen.append(len(numbers(conn)))  # another session sees nothing yet

    assert step(handler).counts.done == 1
    assert (seen, numbers(conn)) == ([5, 1, 0], ["o-1"])


def test_it_is_rolled_back_if_the_handler_raises_later(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make()
        raise ValueError("later")

    assert "later" in step(handler).error
    assert numbers(conn) == []


def test_atomic_is_a_savepoint(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make("kept")
            with suppress(IntegrityError), transaction.atomic():
                make("lost")
                with transaction.atomic():
                    make("kept")
            with transaction.atomic(), transaction.atomic():
                make("also kept")

    assert step(handler).counts.done == 1
    assert numbers(conn) == ["also kept", "kept"]


@pytest.mark.parametrize("atomic", [None, False])
def test_a_statement_that_failed_without_a_savepoint_fails_the_step(
    step: Callable[..., Steps], conn: Conn, atomic: bool | None
) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make("o-1")
            if atomic is None:
                with pytest.raises(DataError):
                    Order.objects.create(number="x" * 51)
            else:
                with pytest.raises(ValueError, match="mine"), transaction.atomic(savepoint=False):
                    raise ValueError("mine")

    assert "put what may fail in a block of atomic()" in step(handler).error
    assert numbers(conn) == []


def test_a_block_that_raises_fails_the_step_even_if_the_handler_goes_on(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(run: Run[Any]) -> None:
        with suppress(ValueError), in_step(run):
            make()
            raise ValueError("caught")

    assert "a block of in_step has ended with ValueError, and the handler went on: caught" in step(handler).error
    assert numbers(conn) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: transaction.commit(),
        lambda: transaction.rollback(),
        lambda: transaction.set_autocommit(True),
        lambda: connection.close(),
        lambda: connections.close_all(),
    ],
    ids=["commit", "rollback", "set_autocommit", "close", "close_all"],
)
def test_what_would_end_the_transaction_raises_and_says_what_to_do(
    step: Callable[..., Steps], conn: Conn, call: Callable[[], Any]
) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make()
            with pytest.raises(TransactionManagementError, match=r"in stage steps.work: its transaction commits with"):
                call()

    assert step(handler).counts.done == 1
    assert numbers(conn) == ["o-1"]


def test_a_durable_block_is_refused(step: Callable[..., Steps]) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run), transaction.atomic(durable=True):
            make()

    assert "durable atomic block cannot be nested" in step(handler).error


def test_on_commit_runs_after_the_commit_on_djangos_own_connection(step: Callable[..., Steps], conn: Conn) -> None:
    seen: list[Any] = []

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make()
            transaction.on_commit(lambda: seen.append(("first", numbers(conn), Order.objects.count())))
            with suppress(ValueError), transaction.atomic():
                transaction.on_commit(lambda: seen.append("of a savepoint that was rolled back"))
                raise ValueError("undone")
            transaction.on_commit(fail)
            transaction.on_commit(lambda: seen.append(("second", make("o-2").number)))
        seen.append("handler")

    assert step(handler).counts.done == 1
    assert seen == ["handler", ("first", ["o-1"], 1), ("second", "o-2")]


def test_on_commit_does_not_run_if_the_step_is_not_committed(step: Callable[..., Steps]) -> None:
    seen: list[str] = []

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            transaction.on_commit(lambda: seen.append("called"))
        raise ValueError("later")

    assert step(handler).counts.dead == 1
    assert seen == []


def test_handlers_that_share_a_transaction_have_their_own_orm_writes_and_hooks(
    step: Callable[..., Steps], conn: Conn
) -> None:
    seen: list[tuple[str, int]] = []

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make(run.entity_id)
            transaction.on_commit(lambda: seen.append((run.entity_id, len(numbers(conn)))))
        if run.entity_id == "e-3":
            raise ValueError("mine alone")

    entities = [f"e-{number}" for number in range(6)]
    ended = step(handler, *entities, share=50)
    assert (ended.counts.done, ended.counts.dead) == (5, 1)
    assert numbers(conn) == sorted({*entities} - {"e-3"})
    assert sorted(entity for entity, _ in seen) == numbers(conn)


def test_savepoints_in_a_shared_transaction_give_each_handler_its_own(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run), transaction.atomic():
            make(run.entity_id)

    assert step(handler, *"abcd", share=50).counts.done == 4
    assert numbers(conn) == list("abcd")


def test_a_batch_has_the_orm_by_any_of_its_runs(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(runs: list[Run[Any]]) -> None:
        with in_step(runs[-1]):
            Order.objects.bulk_create(Order(number=run.entity_id) for run in runs)

    assert step(handler, *"abc", batch=3).counts.done == 3
    assert numbers(conn) == list("abc")


def test_an_attempt_that_has_timed_out_sends_nothing_more(step: Callable[..., Steps], conn: Conn) -> None:
    ended: list[type[BaseException]] = []

    def handler(run: Run[Any]) -> None:
        try:
            with in_step(run):
                make()
                while True:
                    Order.objects.count()
        except LeaseLost as error:
            ended.append(type(error))
            raise

    assert "timeout" in step(handler, timeout=0.1).error
    wait_for(lambda: ended == [LeaseLost])
    assert numbers(conn) == []


def test_a_schedule_has_the_orm_too(shop: str, conn: Conn) -> None:
    ticking = Pipeline("ticking", initial="NEW", final={"DONE"})
    ticking.stage("work", on="NEW", to="DONE")(lambda run: None)

    @ticking.every("* * * * * *")
    def look(tick: Tick) -> None:
        with in_step(tick):
            Order.objects.get_or_create(number="found")
            ticking.submit(connection, f"o-{tick.at:%H%M%S}", {})

    deploy(conn, ticking)
    conn.execute("UPDATE outbox.schedules SET next_at = now() - interval '1 minute'")
    drain(ticking, shop)
    assert numbers(conn) == ["found"]
    assert conn.execute("SELECT count(*) > 0 FROM outbox.workflow_states").fetchone() == (True,)


def test_calls_of_outbox_on_djangos_connection_are_part_of_the_step(step: Callable[..., Steps], conn: Conn) -> None:
    others = Pipeline("others", initial="NEW", final={"DONE"})
    others.allow("NEW", to="DONE")
    deploy(conn, others)

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            others.submit_many(connection, [(f"{run.entity_id}-{number}", {}) for number in range(2)])
        if run.entity_id == "fails":
            raise ValueError("after")

    step(handler, "works", "fails")
    found = conn.execute("SELECT entity_id FROM outbox.workflow_states WHERE pipeline = 'others' ORDER BY 1").fetchall()
    assert found == [("works-0",), ("works-1",)]


def test_times_are_read_as_django_reads_them_whatever_the_sessions_zone(
    step: Callable[..., Steps], conn: Conn, admin_dsn: str
) -> None:
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET timezone = 'Asia/Tokyo'".encode())
    seen: list[datetime] = []

    def handler(run: Run[Any]) -> None:
        row = run.connection.execute("SELECT now()").fetchone()
        with in_step(run):
            make()
            seen.extend([row[0], Order.objects.annotate(now=Now()).get().now])

    assert step(handler).counts.done == 1
    assert abs(seen[0] - seen[1]) < timedelta(hours=1)
    assert seen[1].utcoffset().total_seconds() == 0  # type: ignore[union-attr]


def test_the_steps_own_connection_stays_as_it_is(step: Callable[..., Steps]) -> None:
    seen: list[Any] = []

    def handler(run: Run[Any]) -> None:
        with in_step(run):
            make()
            seen.append(run.connection.execute("""SELECT '{"a": 1}'::jsonb""").fetchone())
            seen.append(type(run.connection.cursor()))
        seen.append(connections["default"].connection)

    assert step(handler).counts.done == 1
    assert seen == [({"a": 1},), psycopg.Cursor, None]


def test_another_alias_keeps_its_own_connection(step: Callable[..., Steps], conn: Conn, shop: str) -> None:
    def handler(run: Run[Any]) -> None:
        with in_step(run, using="other"):
            Order.objects.using("other").create(number="in the step")
            Order.objects.create(number="by itself")
        raise ValueError("later")

    with django_project.database(shop, "other"):
        assert "later" in step(handler).error
    assert numbers(conn) == ["by itself"]


def test_stages_without_a_transaction_and_async_handlers_are_refused(shop: str, conn: Conn) -> None:
    pipeline = Pipeline("refused", initial="NEW", final={"DONE"})
    once = Backoff(attempts=1)

    @pipeline.stage("plain", on="NEW", to="DONE", retry=once)
    def plain(run: Run[Any]) -> None:
        with in_step(run):
            make()

    other = Pipeline("refused_async", initial="NEW", final={"DONE"})

    @other.stage("work", on="NEW", to="DONE", retry=once, transaction=True)
    async def work(run: Run[Any]) -> None:
        with in_step(run):
            pass

    for each in (pipeline, other):
        deploy(conn, each)
        each.submit(conn, "e", {})
    drain([pipeline, other], shop)
    errors = conn.execute("SELECT error FROM outbox.dead_jobs ORDER BY pipeline").fetchall()
    assert "define it with transaction=True" in errors[0][0]
    assert "stage refused_async.work is async, and Django's ORM needs a plain connection" in errors[1][0]


def test_after_the_block_the_thread_has_djangos_own_connection(step: Callable[..., Steps], conn: Conn) -> None:
    def handler(run: Run[Any]) -> None:
        for number in ("first", "second"):
            with in_step(run):
                make(f"{number} in the step")
            make(f"{number} by itself")
        raise ValueError("later")

    assert "later" in step(handler).error
    assert numbers(conn) == ["first by itself", "second by itself"]
