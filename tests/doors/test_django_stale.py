"""A connection of Django's that is lost costs one attempt, and no later job of its thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction

from apps.django_shop.models import Order
from kit import django_project
from kit.pipelines import drain
from kit.servers import wait_for
from outbox import Backoff, Pipeline, Run, deploy
from outbox.django.stale import Healing, close_stale

Conn = psycopg.Connection[Any]
LOST = {"CONN_MAX_AGE": None, "AUTOCOMMIT": True, "CONN_HEALTH_CHECKS": False}

OURS = (
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database() "
    "AND pid <> pg_backend_pid() AND application_name = ''"
)


opened: list[Any] = []


def plain(run: Run[Any]) -> None:
    Order.objects.count()
    opened.append(connection.connection)


async def in_loop(run: Run[Any]) -> None:
    await Order.objects.acount()
    await sync_to_async(lambda: opened.append(connection.connection))()


@pytest.fixture
def shop(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    with django_project.shop(dsn, **getattr(request, "param", LOST)):
        connection.close()
        yield dsn
    while opened:  # their threads have ended
        opened.pop().close()


def attempts(conn: Conn, dsn: str, handler: Callable[[Run[Any]], Any], jobs: int) -> list[int | None]:
    """Runs jobs one after the other, and ends the sessions of the ORM after each; returns their attempts."""
    pipeline = Pipeline("shop", initial="NEW", final={"DONE"})

    if handler is in_loop:

        async def work(run: Run[Any]) -> None:
            await in_loop(run)
            end_sessions(conn)
    else:

        def work(run: Run[Any]) -> None:  # type: ignore[misc]
            handler(run)
            end_sessions(conn)

    retry = Backoff(first=0, jitter=0, attempts=3)
    pipeline.stage("count", on="NEW", to="DONE", retry=retry, concurrency=1)(work)
    deploy(conn, pipeline)
    pipeline.submit_many(conn, [(f"o-{number}", {}) for number in range(jobs)])
    drain(pipeline, dsn, concurrency=1)
    found = conn.execute("SELECT attempt FROM outbox.state_changes WHERE to_status = 'DONE' ORDER BY at").fetchall()
    return [attempt for (attempt,) in found]


def end_sessions(conn: Conn) -> None:
    for (pid,) in conn.execute(OURS).fetchall():
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


@pytest.mark.parametrize("handler", [plain, in_loop])
def test_a_lost_connection_costs_one_attempt_of_each_job_and_heals(
    shop: str, conn: Conn, handler: Callable[[Run[Any]], Any]
) -> None:
    assert attempts(conn, shop, handler, 3) == [1, 2, 2]


@pytest.mark.parametrize("shop", [{**LOST, "CONN_HEALTH_CHECKS": True}], indirect=True)
def test_with_health_checks_it_costs_none(shop: str, conn: Conn) -> None:
    assert attempts(conn, shop, plain, 3) == [1, 1, 1]


@pytest.mark.parametrize("shop", [{**LOST, "CONN_MAX_AGE": 0}], indirect=True)
def test_without_persistent_connections_none_is_left_open(shop: str, conn: Conn) -> None:
    assert attempts(conn, shop, plain, 2) == [1, 1]
    assert conn.execute(OURS).fetchall() == []


def test_threads_of_a_worker_that_ends_close_their_connections(shop: str, conn: Conn) -> None:
    """A test database couldn't be dropped, and an application that embeds workers would run out of connections."""
    pipeline = Pipeline("shop", initial="NEW", final={"DONE"})
    pipeline.stage("count", on="NEW", to="COUNTED")(lambda run: plain(run))
    pipeline.stage("again", on="COUNTED", to="DONE", transaction=True)(lambda run: plain(run))
    deploy(conn, pipeline)
    pipeline.submit_many(conn, [(f"o-{number}", {}) for number in range(3)])
    assert drain(pipeline, shop).counts.done == 6
    assert opened
    wait_for(lambda: conn.execute(OURS).fetchall() == [])


def test_the_thread_of_async_handlers_keeps_no_connection_when_the_worker_has_ended(shop: str, conn: Conn) -> None:
    pipeline = Pipeline("shop", initial="NEW", final={"DONE"})
    pipeline.stage("count", on="NEW", to="DONE")(in_loop)
    deploy(conn, pipeline)
    pipeline.submit_many(conn, [(f"o-{number}", {}) for number in range(3)])
    assert drain(pipeline, shop).counts.done == 3
    assert opened
    wait_for(lambda: conn.execute(OURS).fetchall() == [])


def test_connections_in_atomic_are_left_alone(shop: str) -> None:
    """As in a TestCase, whose connection would be closed with all that the test has written."""
    with transaction.atomic():
        Order.objects.create(number="o-1")
        with Healing(None):
            pass
        assert Order.objects.count() == 1
    close_stale()
