"""Faults, with real processes and real signals. After each: everything is done, once, and the books say so."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kit.databases import OWNER, make_database
from kit.faults import WORKER, check_books, drained, held, open_gate, prepare, submit
from kit.pipelines import value
from kit.pooler import direct
from kit.servers import PostgresServer, Process, wait_for
from outbox.database import migrations

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


@pytest.mark.parametrize("point", ["K1", "K2", "K3", "K4", "K5", "K3:2", "K4:2"])
def test_f01_a_worker_killed_at_any_point_loses_nothing(conn: Conn, app: Any, spawn: Spawn, point: str) -> None:
    submit(conn, app, *(f"e{n}" for n in range(20)))
    victim = spawn(*WORKER, env={"OUTBOX_KILL_AT": point})
    assert victim.wait() == -signal.SIGKILL, victim.text()
    heir = spawn(*WORKER)
    wait_for(lambda: drained(conn), what="what the killed worker held runs again within seconds")
    heir.send(signal.SIGTERM)
    assert heir.wait() == 0
    check_books(conn, 20)


@pytest.mark.parametrize("point", ["K3:3", "K4:3"])
def test_f01_batches_in_one_transaction_survive_a_kill_too(conn: Conn, app: Any, spawn: Spawn, point: str) -> None:
    submit(conn, app, *(f"e{n}" for n in range(40)))
    victim = spawn(*WORKER, env={"OUTBOX_KILL_AT": point, "BATCH": "7"})
    assert victim.wait() == -signal.SIGKILL, victim.text()
    heir = spawn(*WORKER, env={"BATCH": "7"})
    wait_for(lambda: drained(conn), what="what the killed worker held runs again within seconds")
    heir.send(signal.SIGTERM)
    assert heir.wait() == 0
    check_books(conn, 40)


def test_f02_a_worker_frozen_past_its_lease_changes_nothing_when_it_comes_back(
    conn: Conn, app: Any, spawn: Spawn
) -> None:
    submit(conn, app, "slow1", "slow2")
    zombie = spawn(*WORKER, "--lease", "1")
    ran = "SELECT count(*) FROM outbox.witness WHERE attempt = 1"
    wait_for(lambda: value(conn, ran) == 2, what="both handlers run")
    first = value(conn, "SELECT id FROM outbox.workers")
    zombie.freeze()
    heir = spawn(*WORKER)
    wait_for(
        lambda: value(conn, "SELECT count(*) FROM outbox.witness WHERE attempt = 2") == 2, what="the heir runs them"
    )
    open_gate(conn)
    wait_for(lambda: drained(conn), what="the heir ends them")
    zombie.send(signal.SIGCONT)
    wait_for(lambda: "LeaseLost" in zombie.text(), what="the late worker learns that it lost its lease")
    check_books(conn, 2)
    assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE actor = %s", f"worker-{first}") == 0
    heir.send(signal.SIGTERM)
    assert heir.wait() == 0
    submit(conn, app, "e1")
    wait_for(lambda: drained(conn), what="the one that came back works again, under a new id")
    assert zombie.running
    check_books(conn, 3)


def start_with_jobs_waiting(conn: Conn, app: Any, spawn: Spawn, *options: str) -> Process:
    """Return a worker that runs two slow jobs and has claimed more that it has not started."""
    submit(conn, app, *(f"quick{n}" for n in range(3000)), *(f"slow{n}" for n in range(40)))
    # So eager that it claims ahead however slow this machine makes the quick ones.
    worker = spawn(*WORKER, "--stage", "first", "--concurrency", "2", *options, env={"PREFETCH": "1e6"})
    wait_for(lambda: held(conn, "slow%") > 2 and value(conn, "SELECT count(*) FROM outbox.witness") == 2)
    return worker


def test_f05_sigterm_gives_unstarted_jobs_back_at_once_and_lets_running_ones_finish(
    conn: Conn, app: Any, spawn: Spawn
) -> None:
    # The handlers run on, and the lease lasts: what is free meanwhile was given back.
    worker = start_with_jobs_waiting(conn, app, spawn, "--grace", "3600", "--lease", "3600")
    worker.send(signal.SIGTERM)
    wait_for(lambda: held(conn) == 2, what="what had not started is free at once")
    assert (
        value(conn, "SELECT count(*) FROM outbox.jobs WHERE owner IS NULL AND stage = 'first' AND attempt <> 0") == 0
    ), "no attempt is burnt"
    assert worker.running
    open_gate(conn)
    assert worker.wait() == 0
    assert value(conn, "SELECT count(*) FROM outbox.state_changes c JOIN outbox.workflow_states w ON w.id = workflow_id "
                       "WHERE to_status = 'MID' AND entity_id LIKE 'slow%'") == 2, "the running ones finished"  # fmt: skip
    assert value(conn, "SELECT count(*) FROM outbox.workers") == 0


@pytest.mark.parametrize("how", ["second SIGTERM", "end of the grace time"])
def test_f05_interrupted_handlers_leave_their_jobs_free(conn: Conn, app: Any, spawn: Spawn, how: str) -> None:
    submit(conn, app, "slow1", "slow2")
    worker = spawn(*WORKER, "--grace", "0.3" if how == "end of the grace time" else "600")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") == 2)
    worker.send(signal.SIGTERM)
    if how == "second SIGTERM":
        wait_for(lambda: "stopping" in worker.text(), what="the first signal has arrived")
        worker.send(signal.SIGTERM)
    worker.wait()
    assert (held(conn), value(conn, "SELECT max(attempt) FROM outbox.jobs")) == (0, 0)
    open_gate(conn)
    spawn(*WORKER, "--drain").wait()
    assert drained(conn)


def test_f06_a_job_that_kills_its_worker_dies_after_its_attempts_and_the_others_finish(
    conn: Conn, app: Any, spawn: Spawn
) -> None:
    submit(conn, app, *(f"e{n}" for n in range(300)), "poison", *(f"quick{n}" for n in range(699)))
    kills = 0
    conn.execute("UPDATE outbox.stages SET max_attempts = 3")
    worker = spawn(*WORKER, env={"ATTEMPTS": "3"})

    def done() -> bool:
        nonlocal worker, kills
        if not worker.running:
            assert worker.popen.returncode == 9, worker.text()
            kills += 1
            worker = spawn(*WORKER, env={"ATTEMPTS": "3"})
        return drained(conn)

    wait_for(done, what="all but the poison are done")
    assert kills == 3
    assert conn.execute("SELECT entity_id, attempts FROM outbox.dead_jobs").fetchall() == [("poison", 3)]
    assert "was lost during attempt 3" in value(conn, "SELECT error FROM outbox.dead_jobs")
    check_books_with_poison(conn)


def check_books_with_poison(conn: Conn) -> None:
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 999
    assert conn.execute("SELECT count(*), count(DISTINCT entity) FROM outbox.ledger").fetchone() == (999, 999)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        migrations.apply(make_database(server, "faults"))
        yield server


def test_f20_workers_live_through_a_killed_postmaster(
    own_server: PostgresServer, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = own_server.dsn("faults", OWNER)
    monkeypatch.setenv("OUTBOX_DSN", dsn)
    with psycopg.connect(dsn, autocommit=True) as conn:
        app = prepare(conn, dsn)
        submit(conn, app, *(f"e{n}" for n in range(300)))
    workers = [spawn(*WORKER, env=direct(dsn)) for _ in range(2)]
    for done in (20, 120):
        with psycopg.connect(dsn, autocommit=True) as conn:
            wait_for(lambda conn=conn, done=done: value(conn, "SELECT count(*) FROM outbox.ledger") >= done)
        own_server.kill()
        own_server.start()
    with psycopg.connect(dsn, autocommit=True) as conn:
        wait_for(lambda: drained(conn), what="the workers have reconnected and done the rest")
        assert all(worker.running for worker in workers)
        check_books(conn, 300)


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_f21_sessions_that_are_ended_or_cancelled_at_random_cost_nothing(
    conn: Conn, app: Any, spawn: Spawn, function: str, admin_dsn: str
) -> None:
    submit(conn, app, *(f"e{n}" for n in range(400)))
    workers = [spawn(*WORKER) for _ in range(2)]
    dice, next_shot = random.Random(21), 0
    with psycopg.connect(admin_dsn, autocommit=True) as admin:

        def shoot() -> bool:
            """End or cancel one for every ten that are done, so that between two shots something is."""
            nonlocal next_shot
            if value(conn, "SELECT count(*) FROM outbox.ledger") < next_shot:
                return drained(conn)
            pids = [
                row[0]
                for row in admin.execute(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox %'"
                ).fetchall()
            ]
            if pids:
                next_shot += 10
                admin.execute(f"SELECT {function}(%s)".encode(), [dice.choice(pids)])
            return drained(conn)

        wait_for(shoot, what="all is done under fire")
    for worker in workers:
        assert worker.running, worker.text()
    check_books(conn, 400)


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_f21_a_worker_that_is_just_starting_goes_on(
    conn: Conn, app: Any, spawn: Spawn, connect: Callable[..., Conn], function: str
) -> None:
    submit(conn, app, "e1")
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE outbox.stages")
    worker = spawn(*WORKER)
    starting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'outbox check' AND wait_event_type = 'Lock'"
    victim = wait_for(lambda: value(conn, starting), what="the worker checks whether its pipeline is deployed")
    conn.execute(f"SELECT {function}(%s)".encode(), [victim])
    wait_for(lambda: "waiting for the database" in worker.text(), what="the worker has noticed it")
    holder.rollback()
    wait_for(lambda: drained(conn), what="the worker works")
    assert worker.running


def test_f24_work_starts_within_a_poll_interval_without_any_notify(conn: Conn, app: Any, spawn: Spawn) -> None:
    spawn(*WORKER, "--no-notify")
    wait_for(
        lambda: value(conn, "SELECT count(*) FROM outbox.workers WHERE beat_at > started_at"),
        what="the worker is there",
    )
    submit(conn, app, "e1")
    wait_for(lambda: drained(conn), what="polling finds it")
    check_books(conn, 1)
