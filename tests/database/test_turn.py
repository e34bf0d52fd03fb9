"""Turns of migrate, deploy and retry: any session can hold one, and the log names the session that does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, make_posts, one_stage, value
from kit.servers import DEADLINE, wait_for
from outbox.database import migrations, turn
from outbox.definition import deploy
from outbox.operations import change

Conn = psycopg.Connection[Any]
Connect = Callable[..., Conn]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.05)


@pytest.mark.parametrize("name", ["migrate", "retry"])
def test_it_is_said_who_holds_the_turn_and_waited_for(
    conn: Conn, connect: Connect, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    deployed(conn).submit(conn, "a", Post())
    holder, waiter = connect(), connect()
    holder.execute("SET application_name = 'mallory'")
    lock = "deploy" if name == "retry" else name
    holder.execute("SELECT pg_advisory_lock(hashtext(%s))", [f"outbox.{lock}"])
    act = {"migrate": lambda: migrations.apply(waiter), "retry": lambda: change.retry(waiter, "posts", "a")}[name]
    thread = threading.Thread(target=act)
    thread.start()
    wait_for(lambda: f"session {holder.info.backend_pid} (" in caplog.text, what=f"it is said: {caplog.text}")
    assert f"outbox.{lock}, which session" in caplog.text
    assert "mallory" in caplog.text
    assert thread.is_alive()
    holder.close()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_deploy_says_who_holds_the_turn_and_gives_up(
    conn: Conn, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    holder = connect()
    holder.execute("SELECT pg_advisory_lock(hashtext('outbox.deploy'))")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        deploy.deploy(conn, make_posts())
    assert f"session {holder.info.backend_pid} (" in caplog.text
    holder.close()
    deploy.deploy(conn, one_stage(lambda run: None))
    assert value(conn, "SHOW lock_timeout") == "0"
