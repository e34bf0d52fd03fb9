"""Waiting for a workflow: until it has come there, until it can't come any more, or until the time is over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.drivers import held
from kit.pipelines import Post, deployed, drain, one_stage, value
from kit.servers import wait_for
from outbox import DefinitionError, InvalidInput, NeverReached, NotFound, Pipeline, Reject, WaitTimeout
from outbox.client import wait as module

Conn = psycopg.Connection[Any]


def pipeline(handler: Callable[..., Any] = lambda run: None, **options: Any) -> Pipeline[Any]:
    made: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE", "GONE"}, **options)
    made.stage("work", on="NEW", to="ASKED")(handler)
    made.allow("ASKED", to={"DONE", "GONE", "NEW"})
    return made


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async", "psycopg2", "asyncpg", "django", "sqlalchemy session psycopg",
                                  "sqlalchemy async session asyncpg"])  # fmt: skip
def test_it_returns_where_it_has_come_to_on_any_connection(kind: str, conn: Conn, dsn: str) -> None:
    made = deployed(conn, pipeline())
    made.submit(conn, "a", {"n": 1})
    drain(made, dsn)
    with held(kind, dsn) as app:
        found = app.call(made.wait, app.conn, "a", "ASKED", timeout=0)
        assert (found.status, found.data, found.version) == ("ASKED", {"n": 1}, 2)
        assert app.call(made.wait, app.conn, "a", "NEW", timeout=0).status == "ASKED", "it was there"
        with pytest.raises(WaitTimeout) as late:
            app.call(made.wait, app.conn, "a", "DONE", "GONE", timeout=0.03)
        with pytest.raises(NotFound):
            app.call(made.wait, app.conn, "b", timeout=1)
        moved = threading.Timer(0.1, lambda: made.move(conn, "a", "DONE"))
        moved.start()
        assert app.call(made.wait, app.conn, "a", timeout=60).status == "DONE"
        moved.join()
        with pytest.raises(NeverReached) as never:
            app.call(made.wait, app.conn, "a", "GONE", timeout=60)
    assert isinstance(late.value, TimeoutError)
    assert (late.value.status, late.value.statuses, late.value.why.cause) == ("ASKED", ("DONE", "GONE"), "change")
    assert "in ASKED, not in DONE or GONE. It waits" in str(late.value)
    assert not isinstance(never.value, TimeoutError)


def test_a_dead_job_ends_the_wait_with_its_error(conn: Conn, dsn: str) -> None:
    def work(run: Any) -> None:
        raise Reject("no stock")

    made = deployed(conn, one_stage(work))
    made.submit(conn, "a", Post())
    drain(made, dsn)
    with pytest.raises(NeverReached, match="no stock") as caught:
        made.wait(dsn, "a", "DONE", timeout=60)
    assert caught.value.why.cause == "dead"


def test_what_passed_through_a_status_while_nobody_looked_has_been_there(conn: Conn, dsn: str) -> None:
    made = deployed(conn, pipeline())
    made.submit(conn, "a", {})
    drain(made, dsn)
    made.move(conn, "a", "NEW")
    drain(made, dsn)
    assert made.wait(conn, "a", "NEW", timeout=0).version == 4
    assert made.wait(conn, "a", "ASKED", since=3, timeout=0).status == "ASKED"
    with pytest.raises(WaitTimeout):
        made.wait(conn, "a", "ASKED", since=4, timeout=0)


def test_a_transaction_that_could_never_see_it_come_is_refused(conn: Conn, dsn: str) -> None:
    made = deployed(conn, pipeline())
    with psycopg.connect(dsn) as mine:
        made.submit(mine, "a", {})
        with pytest.raises(InvalidInput, match="has written"):
            made.wait(mine, "a", timeout=60)
        mine.commit()
        mine.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(InvalidInput, match="one snapshot"):
            made.wait(mine, "a", timeout=60)


@pytest.mark.parametrize(
    "wrong", [{"timeout": -1}, {"timeout": "x"}, {"timeout": 1, "since": -1}, {"timeout": 1, "since": True}]
)
def test_what_makes_no_sense_is_refused(conn: Conn, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        pipeline().wait(conn, "a", **wrong)
    with pytest.raises(InvalidInput, match="statuses"):
        pipeline().wait(conn, "a", "", timeout=1)
    with pytest.raises(InvalidInput, match=r"no status 'DOEN'; did you mean DONE\?"):
        pipeline().wait(conn, "a", "ASKED", "DOEN", timeout=3600)
    with pytest.raises(InvalidInput, match="dsn"):
        asyncio.run(pipeline().wait_async(conn, "a", timeout=1))  # type: ignore[arg-type]


# Notifications.


def test_a_change_to_a_chosen_status_is_notified_and_no_other(conn: Conn, dsn: str) -> None:
    made = deployed(conn, pipeline(notify={"NEW", "DONE"}))
    odd = '☃ "q" \\ \n' + "\x01" * 500
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute('LISTEN "outbox.status"')
        with conn.transaction(force_rollback=True):
            made.submit(conn, "never", {})
        made.submit_many(conn, [("a", {}), (odd, {})])
        drain(made, dsn)
        made.move(conn, "a", "DONE")
        made.move(conn, odd, "GONE")
        conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"n\": 1}'")
        told = [json.loads(notice.payload) for notice in listener.notifies(timeout=5, stop_after=3)]
        told += [json.loads(notice.payload) for notice in listener.notifies(timeout=0)]
    assert told == [
        {"pipeline": "p", "entity_id": "a", "status": "NEW", "version": 1},
        {"pipeline": "p", "entity_id": odd, "status": "NEW", "version": 1},
        {"pipeline": "p", "entity_id": "a", "status": "DONE", "version": 3},
    ]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_wait_on_a_connection_of_its_own_is_woken(
    conn: Conn, dsn: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "FIRST", 3_600.0)  # it would look again in an hour
    monkeypatch.setattr(module, "LONGEST", 3_600.0)
    made = deployed(conn, pipeline(notify={"DONE"}))
    made.submit_many(conn, [("a", {}), ("b", {})])
    drain(made, dsn)
    found: list[Any] = []

    def wait() -> None:
        found.append(
            made.wait(dsn, "a", "DONE", timeout=600)
            if how == "sync"
            else asyncio.run(made.wait_async(dsn, "a", "DONE", timeout=600))
        )

    thread = threading.Thread(target=wait)
    thread.start()
    looked = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'outbox wait%%' AND query LIKE '%%pg_current_xact%%' AND state = 'idle'"
    wait_for(lambda: value(conn, looked.replace("%%", "%")) == 1, what="it has looked once")
    made.move(conn, "b", "DONE")
    made.move(conn, "a", "DONE")
    thread.join(60)
    assert [each.entity_id for each in found] == ["a"]


def test_a_status_that_nothing_leads_to_is_not_notified_of(conn: Conn) -> None:
    with pytest.raises(DefinitionError, match="notify names ELSEWHERE"):
        deployed(conn, pipeline(notify={"ELSEWHERE"}))
    with pytest.raises(DefinitionError, match="notify"):
        pipeline(notify="DONE")


def test_a_deploy_says_what_it_notifies_of(conn: Conn) -> None:
    from outbox.definition import deploy

    deployed(conn, pipeline())
    assert deploy.deploy(conn, pipeline(notify={"DONE"})) == ["status DONE: (final) -> (final; notifies)"]
    assert deploy.deploy(conn, pipeline(notify={"DONE"})) == []
