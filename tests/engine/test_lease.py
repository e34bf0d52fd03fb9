"""The lease of a worker: its row in the database, which says that it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.faults import WORKER, check_books, drained, open_gate, submit
from kit.pipelines import no_session_is_left, value
from kit.servers import Process, wait_for
from outbox.engine.inflight import InFlight
from outbox.engine.lane import Lanes
from outbox.engine.lease import Lease

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


def test_a_worker_that_cannot_take_its_row_away_closes_its_connection(dsn: str, conn: Conn) -> None:
    async def leave() -> None:
        lease = Lease(dsn, InFlight(Lanes()), seconds=30, listen=True)
        running = asyncio.create_task(lease.run())
        await lease.registered.wait()
        running.cancel()
        await asyncio.wait({running})
        conn.execute("REVOKE DELETE ON outbox.workers FROM outbox_owner")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await lease.leave()

    asyncio.run(leave())
    assert no_session_is_left(conn)


def test_f07_a_worker_whose_row_is_deleted_takes_a_new_id_and_nothing_is_stuck(
    conn: Conn, app: Any, spawn: Spawn
) -> None:
    submit(conn, app, "slow1")
    worker = spawn(*WORKER, "--lease", "3")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") == 1)
    conn.execute("DELETE FROM outbox.workers")
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness WHERE attempt = 2") == 1, what="it runs again")
    open_gate(conn)
    wait_for(lambda: drained(conn))
    assert worker.running
    check_books(conn, 1)


def test_f07_workers_of_the_same_host_are_told_apart(conn: Conn, app: Any, spawn: Spawn) -> None:
    submit(conn, app, "slow1")
    killed = spawn(*WORKER)
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness") == 1)
    killed.kill9()
    other = spawn(*WORKER)  # the same host name: a start must not pass for the life sign of the one before
    wait_for(lambda: value(conn, "SELECT count(*) FROM outbox.witness WHERE attempt = 2") == 1, what="it runs again")
    open_gate(conn)
    wait_for(lambda: drained(conn))
    assert other.running
    check_books(conn, 1)
