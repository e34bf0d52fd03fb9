"""Django's tasks are run by Outbox's workers: enqueued in the ORM's transaction, with results, priorities and delays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import transaction
from django.utils import timezone

try:
    from django.tasks import TaskResultStatus, default_task_backend
    from django.tasks.exceptions import InvalidTask as InvalidTaskError
    from django.tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started
except ModuleNotFoundError:  # before Django 6
    from django_tasks import TaskResultStatus, default_task_backend
    from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist, TaskResultMismatch
    from django_tasks.signals import task_enqueued, task_finished, task_started

from apps.django_shop import tasks
from apps.django_shop.models import Order
from kit import django_project
from kit.pipelines import drain
from outbox import deploy
from outbox.django.tasks import OutboxBackend, pipelines

Conn = psycopg.Connection[Any]


@pytest.fixture
def queues(dsn: str, conn: Conn) -> Iterator[str]:
    """The tests' project with its queues deployed. `tasks.called` is empty."""
    tasks.called.clear()
    with django_project.shop(dsn):
        deploy(conn, pipelines())
        yield dsn


def work(dsn: str, **options: Any) -> None:
    drain(pipelines(), dsn, **options)


def test_a_task_is_enqueued_in_the_orms_transaction_and_run_by_a_worker(queues: str) -> None:
    with suppress(ValueError), transaction.atomic():
        undone = tasks.make_order.enqueue("undone")
        raise ValueError("undone")
    with transaction.atomic():
        result = tasks.make_order.enqueue("o-1", paid=5)
        assert (result.status, result.is_finished) == (TaskResultStatus.READY, False)
    work(queues)
    assert tasks.called == ["o-1"]
    result.refresh()
    assert (result.status, result.return_value, result.attempts) == (TaskResultStatus.SUCCESSFUL, {"made": "o-1"}, 1)
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert Order.objects.get().paid == 5
    with pytest.raises(TaskResultDoesNotExist):
        tasks.make_order.get_result(undone.id)


def test_what_a_task_raises_is_in_its_result_and_it_runs_once(queues: str, conn: Conn) -> None:
    result = tasks.fail.enqueue("no such thing")
    work(queues)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    (error,) = result.errors
    assert (error.exception_class, tasks.called) == (ValueError, ["no such thing"])
    assert "no such thing" in error.traceback
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018
    assert conn.execute("SELECT count(*) FROM outbox.dead_jobs").fetchone() == (0,)


def test_what_a_task_raises_is_logged_with_its_traceback(queues: str, caplog: pytest.LogCaptureFixture) -> None:
    tasks.fail.enqueue("no such thing")
    work(queues)
    (found,) = [record for record in caplog.records if "FAILED" in record.getMessage()]
    assert found.exc_info is not None
    assert str(found.exc_info[1]) == "no such thing"


def test_an_error_whose_text_postgres_can_not_store_is_kept_as_far_as_it_can_be(queues: str) -> None:
    result = tasks.fail_oddly.enqueue()
    work(queues)
    result.refresh()
    (error,) = result.errors
    assert (result.status, error.exception_class) == (TaskResultStatus.FAILED, ValueError)
    assert "ValueError: in the file \ufffd" in error.traceback


def test_a_value_that_cannot_be_stored_fails_the_task(queues: str) -> None:
    result = tasks.unstorable.enqueue()
    with pytest.raises(TypeError):
        tasks.make_order.enqueue(object())
    work(queues)
    result.refresh()
    assert (result.status, result.errors[0].exception_class) == (TaskResultStatus.FAILED, TypeError)


def test_a_task_whose_job_has_died_has_failed(queues: str, conn: Conn) -> None:
    result = tasks.make_order.enqueue("o-1")
    conn.execute("UPDATE outbox.workflow_states SET metadata = '{}'")  # what no code can read
    work(queues)
    conn.execute(
        "UPDATE outbox.workflow_states SET metadata = %s::jsonb",
        ('{"task": "apps.django_shop.tasks.make_order", "args": [], "kwargs": {}}',),
    )
    found = tasks.make_order.get_result(result.id)
    assert (found.status, found.is_finished, len(found.errors)) == (TaskResultStatus.FAILED, True, 1)
    assert found.finished_at is not None


def test_the_highest_priority_goes_first(queues: str) -> None:
    for priority in (1, 100, -100, 50):
        tasks.send.using(priority=priority).enqueue(str(priority))
    tasks.send.enqueue("5")
    work(queues, concurrency=1)
    assert tasks.called == ["100", "50", "5", "1", "-100"]


def test_an_async_task_runs_and_is_awaited_by_its_result(queues: str) -> None:
    result = tasks.send.enqueue("sarah")
    work(queues)
    result.refresh()
    assert (result.return_value, result.task.queue_name, result.task.priority) == ("sent to sarah", "emails", 5)


def test_a_task_with_run_after_waits_for_its_time(queues: str, conn: Conn) -> None:
    later = timezone.now() + timedelta(hours=3)
    result = tasks.make_order.using(run_after=later).enqueue("later")
    tasks.make_order.using(run_after=timezone.now() - timedelta(hours=1)).enqueue("at once")
    work(queues)
    assert tasks.called == ["at once"]
    found = tasks.make_order.get_result(result.id)
    assert (found.status, found.task.run_after) == (TaskResultStatus.READY, later)
    assert conn.execute("SELECT run_at FROM outbox.jobs").fetchone() == (later,)


def test_a_task_that_runs_is_running(queues: str, conn: Conn) -> None:
    result = tasks.make_order.enqueue("o-1")
    conn.execute("UPDATE outbox.jobs SET owner = 7, attempt = 1, claimed_at = now()")
    result.refresh()
    assert (result.status, result.attempts, result.worker_ids) == (TaskResultStatus.RUNNING, 1, ["7"])


def test_a_task_gets_its_context(queues: str) -> None:
    result = tasks.tell.enqueue()
    work(queues)
    result.refresh()
    assert result.return_value == [1, result.id]


def test_attempts_are_tried_where_the_options_say_so(queues: str, conn: Conn) -> None:
    backend = OutboxBackend("default", {"QUEUES": ["default"], "OPTIONS": {"ATTEMPTS": 2}})
    (again,) = backend.pipelines.values()
    deploy(conn, again)
    result = tasks.fail.enqueue("twice")
    drain(again, queues)
    conn.execute("UPDATE outbox.jobs SET run_at = now(), due = true")
    drain(again, queues)
    result.refresh()
    assert (tasks.called, result.status, result.attempts) == (["twice", "twice"], TaskResultStatus.FAILED, 2)


def test_results_are_those_of_the_backend_and_of_the_task(queues: str, conn: Conn) -> None:
    result = tasks.make_order.enqueue("o-1")
    for unknown in ("no-id", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(unknown)
    with pytest.raises(TaskResultMismatch):
        tasks.send.get_result(result.id)


def test_a_queue_that_is_not_named_is_refused(queues: str) -> None:
    with pytest.raises(InvalidTaskError, match="Queue 'gone' is not valid"):
        tasks.send.using(queue_name="gone")
    anything = OutboxBackend("default", {"QUEUES": []})
    assert [each.id for each in anything.check()] == ["outbox.E004"]


def test_every_backend_and_queue_has_a_pipeline_of_its_own() -> None:
    first = OutboxBackend("default", {"QUEUES": ["default", "emails"]})
    second = OutboxBackend("slow", {"QUEUES": ["default", "emails"]})
    names = [each.name for backend in (first, second) for each in backend.pipelines.values()]
    assert names == ["tasks", "tasks:emails", "tasks-slow", "tasks-slow:emails"]


def test_djangos_signals_are_sent(queues: str) -> None:
    seen: list[tuple[str, str]] = []

    def note(signal: Any, task_result: Any, **_: Any) -> None:
        name = {id(task_enqueued): "enqueued", id(task_started): "started", id(task_finished): "finished"}[id(signal)]
        seen.append((name, str(task_result.status)))

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(note)
    try:
        tasks.make_order.enqueue("o-1")
        work(queues)
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(note)
    assert seen == [("enqueued", "READY"), ("started", "RUNNING"), ("finished", "SUCCESSFUL")]
