"""Handlers that hang, fork, exit or take the signals: what their worker's process does about it, with real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import status_of, value
from kit.servers import Process, wait_for
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]
WORKER = ["worker", "--app", "apps.hanging:app"]


@pytest.fixture
def hanging(conn: Conn) -> Any:
    from apps.hanging import app

    deploy.deploy(conn, app)
    return app


def submit(conn: Conn, status: str, *entities: str) -> None:
    for entity in entities:
        conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('h', %s)", (entity,))
        conn.execute("UPDATE outbox.workflow_states SET current_status = %s WHERE entity_id = %s", (status, entity))


def begun(worker: Process, entity: str) -> Any:
    return wait_for(lambda: f" {entity} #" in worker.text() or not worker.running, what=f"the handler of {entity} runs")


HANGS = {
    "hang1": "SYNC",
    "swallow1": "ASYNC",
    "subtask that swallows1": "ASYNC",
    "thread1": "ASYNC",
    "executor1": "ASYNC",
}


def test_sigterm_ends_a_worker_at_the_end_of_its_grace_whatever_hangs_in_it(
    conn: Conn, hanging: Any, spawn: Spawn
) -> None:
    for entity, status in HANGS.items():
        submit(conn, status, entity)
    worker = spawn(*WORKER, "--grace", "0.2")
    for entity in HANGS:
        begun(worker, entity)
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 1, worker.text()
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NOT NULL OR attempt > 0") == 0, "all released"


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_ends_a_worker_whose_event_loop_stands_still(
    conn: Conn, hanging: Any, spawn: Spawn, times: int
) -> None:
    submit(conn, "ASYNC", "block1")
    worker = spawn(*WORKER, "--grace", "0.2" if times == 1 else "3600")
    begun(worker, "block1")
    worker.send(signal.SIGTERM)
    if times == 2:  # two at the same moment are one
        wait_for(lambda: not worker.running or worker.send(signal.SIGTERM))
    assert worker.wait(120) == 1
    assert "the event loop stands still (hanging.py:" in worker.text()


@pytest.mark.parametrize("entity", ["hang1", "swallow1"])
def test_a_second_sigterm_ends_it_at_once(conn: Conn, hanging: Any, spawn: Spawn, entity: str) -> None:
    submit(conn, HANGS[entity], entity)
    worker = spawn(*WORKER, "--grace", "3600")
    begun(worker, entity)
    worker.send(signal.SIGTERM)
    wait_for(lambda: "stopping" in worker.text(), what="the first one has arrived")
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 1


def test_sigterm_ends_a_worker_whose_timed_out_handlers_hang(conn: Conn, hanging: Any, spawn: Spawn) -> None:
    submit(conn, "SYNC", "hang1")
    submit(conn, "ASYNC", "swallow1")
    worker = spawn(*WORKER, "--grace", "3600", "--concurrency", "2", env={"TIMEOUT": "0.2", "ATTEMPTS": "1"})
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 2, what="both have timed out")
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 1
    for name in ("h.threaded hang1", "h.looped swallow1"):
        assert name in worker.text().rpartition("the process ends, though still running")[2]


def test_sigterm_ends_a_worker_in_the_middle_of_a_plain_tick_that_sleeps(conn: Conn, spawn: Spawn) -> None:
    assert spawn("deploy", "--app", "apps.hanging:app", env={"TICK": "1"}).wait() == 0
    worker = spawn(*WORKER, "--grace", "0.2", env={"TICK": "1"})
    wait_for(lambda: "ticking" in worker.text() or not worker.running, what="it ticks")
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 1, worker.text()
    assert "schedule h.tick" in worker.text().rpartition("the process ends, though still running")[2]


def test_a_worker_without_a_free_slot_ends_and_says_why_and_the_next_one_goes_on(
    conn: Conn, hanging: Any, spawn: Spawn
) -> None:
    submit(conn, "SYNC", "hang1", "hang2", "good1", "good2")
    worker = spawn(*WORKER, env={"TIMEOUT": "0.2", "ATTEMPTS": "1", "LOST_AFTER": "0.2"})
    assert worker.wait(120) == 1
    assert "stage h.threaded has no slot left" in worker.text()
    assert value(conn, "SELECT count(*) FROM outbox.jobs WHERE attempt = 0 AND owner IS NULL") == 2
    assert spawn(*WORKER, "--drain").wait() == 0
    assert (status_of(conn, "good1"), status_of(conn, "good2")) == ("DONE", "DONE")


# Children, signals and the loop.


HARMLESS = {
    "process1": "ASYNC",
    "pool1": "ASYNC",
    "fork1": "ASYNC",
    "fork and wait1": "ASYNC",
    "fork2": "SYNC",
    "fork and exit1": "SYNC",
    "ignore1": "ASYNC",
    "stop1": "ASYNC",
    "subtask that exits later1": "ASYNC",
}


def test_what_a_handler_does_to_its_process_is_its_own_affair(conn: Conn, hanging: Any, spawn: Spawn) -> None:
    worker = spawn(*WORKER)
    for entity, status in HARMLESS.items():
        submit(conn, status, entity)
        wait_for(lambda entity=entity: status_of(conn, entity) == "DONE" or not worker.running, what="it is done")
    assert "stopping" not in worker.text()
    assert value(conn, "SELECT max(attempt) FROM outbox.state_changes") == 1
    wait_for(lambda: "set another handler for SIGTERM" in worker.text() or not worker.running)
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 0, worker.text()


def test_a_subtask_that_exits_fails_its_handler_alone(conn: Conn, hanging: Any, spawn: Spawn) -> None:
    submit(conn, "ASYNC", "subtask that exits1", "callback that exits1", "good1")
    worker = spawn(*WORKER, env={"ATTEMPTS": "1"})
    wait_for(lambda: not value(conn, "SELECT count(*) FROM outbox.jobs") or not worker.running)
    assert conn.execute("SELECT entity_id FROM outbox.dead_jobs").fetchall() == [("subtask that exits1",)]
    assert "SystemExit" in value(conn, "SELECT error FROM outbox.dead_jobs")
    worker.send(signal.SIGTERM)
    assert worker.wait(120) == 0


def test_a_handler_that_cancels_all_tasks_ends_the_worker_which_says_so(conn: Conn, hanging: Any, spawn: Spawn) -> None:
    submit(conn, "ASYNC", "cancel all1")
    worker = spawn(*WORKER)
    assert worker.wait(120) == 1
    assert "the worker's own tasks were cancelled" in worker.text()
    assert "never awaited" not in worker.text()
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0
