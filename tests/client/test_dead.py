"""Dead jobs are listed and run again from Python."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, one_stage, value
from outbox import InvalidInput, NoWorkflow, Pipeline, Reject, dead, retry, retry_all
from outbox.client import dead as module

Conn = psycopg.Connection[Any]


@pytest.fixture
def died(conn: Conn, dsn: str) -> Pipeline[Any]:
    def work(run: Any) -> None:
        if run.entity_id[0] == "x":
            raise Reject(f"no customer {run.entity_id[1:]}")
        raise Reject("no stock")

    pipeline = deployed(conn, one_stage(work))
    pipeline.submit_many(conn, [(name, Post()) for name in ("x1", "x2", "x3", "y1")])
    drain(pipeline, dsn)
    return pipeline


def test_the_latest_come_first_and_an_error_finds_its_kind(conn: Conn, died: Pipeline[Any]) -> None:
    found = dead(conn)
    assert {each.entity_id for each in found} == {"x1", "x2", "x3", "y1"}
    assert [each.died_at for each in found] == sorted((each.died_at for each in found), reverse=True)
    assert {each.entity_id for each in dead(conn, error=found[-1].error)} == {
        each.entity_id for each in found if each.kind == found[-1].kind
    }
    assert dead(conn, pipeline="other") == []
    assert len(dead(conn, limit=2)) == 2


def test_a_retry_is_kept_with_who_and_why(conn: Conn, died: Pipeline[Any]) -> None:
    assert retry(conn, died, "x1", by="sarah", reason="the customer is back")
    assert not retry(conn, died, "x1", by="tom")
    told = "SELECT a.action, a.pipeline, a.stage, a.actor, a.login, a.reason FROM outbox.actions AS a"
    assert conn.execute(told).fetchall() == [
        ("retry", "p", "work", "sarah", conn.info.user, "the customer is back"),
    ]
    assert (
        value(conn, "SELECT w.entity_id FROM outbox.actions JOIN outbox.workflow_states AS w ON w.id = workflow_id")
        == "x1"
    )
    with pytest.raises(NoWorkflow):
        retry(conn, died, "nothing")


def test_all_run_again_in_batches_and_once(
    conn: Conn, dsn: str, died: Pipeline[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    assert retry_all(conn, error="no stock") == 1
    assert retry_all(conn, pipeline="other") == 0
    with conn.transaction(force_rollback=True):
        assert retry_all(conn, pipeline=died, by="sarah") == 3
    assert retry_all(conn, by="sarah") == 3
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 4
    assert value(conn, "SELECT count(*) FROM outbox.actions WHERE actor = 'sarah'") == 3
    drain(died, dsn)
    assert len(dead(conn)) == 4, "they die again"


def test_one_whose_status_no_stage_takes_any_more_ends_no_loop(
    conn: Conn, died: Pipeline[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    conn.execute("UPDATE outbox.routes SET stage = NULL WHERE status = 'NEW'")
    assert retry_all(conn) == 0


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": True}, {"error": "x\0"}, {"pipeline": 7}])
def test_what_no_list_can_have_is_refused(conn: Conn, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        dead(conn, **wrong)


def test_actions_go_with_the_history(conn: Conn, died: Pipeline[Any]) -> None:
    from outbox.engine.retention import SQL

    retry(conn, died, "x1")
    conn.execute("UPDATE outbox.actions SET at = at - interval '9 days'")
    retry(conn, died, "x2")
    asked = {"days": 7, "limit": 100, "only": None, "but": []}
    with conn.transaction():
        conn.execute("SET LOCAL outbox.retention = 'on'")
        conn.execute(SQL["retention_history"], asked)
    assert value(conn, "SELECT count(*) FROM outbox.actions") == 1
