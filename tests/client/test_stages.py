"""Stages are paused and resumed from Python: whose, by whom, why."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, one_stage, status_of, value
from outbox import InvalidInput, NotFound, Pipeline, pause, resume

Conn = psycopg.Connection[Any]


def test_a_paused_stage_claims_nothing_until_it_is_resumed(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit(conn, "a", Post())
    assert pause(conn, "work", by="sarah", reason="too hot")
    assert not pause(conn, "p.work", by="tom")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "NEW"
    assert conn.execute("SELECT paused_by, reason FROM outbox.pauses").fetchall() == [("sarah", "too hot")]
    assert resume(conn, "work", pipeline=pipeline, by="tom", reason="cool")
    assert not resume(conn, "work")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    told = "SELECT action, pipeline, stage, actor, reason FROM outbox.actions ORDER BY at"
    assert conn.execute(told).fetchall() == [
        ("pause", "p", "work", "sarah", "too hot"), ("resume", "p", "work", "tom", "cool"),
    ]  # fmt: skip


def test_plain_sql_is_kept_as_well(conn: Conn) -> None:
    deployed(conn, one_stage(lambda run: None))
    with conn.transaction():
        conn.execute("SET LOCAL outbox.actor = 'sarah'; SET LOCAL outbox.reason = 'because'")
        conn.execute("INSERT INTO outbox.pauses (pipeline, stage) VALUES ('p', 'work')")
        conn.execute("DELETE FROM outbox.pauses")
    told = "SELECT action, actor, reason FROM outbox.actions ORDER BY at"
    assert conn.execute(told).fetchall() == [("pause", "sarah", None), ("resume", "sarah", "because")]


def test_a_name_of_several_pipelines_must_say_which(conn: Conn) -> None:
    for name in ("p", "q"):
        pipeline: Pipeline[Any] = Pipeline(name, initial="NEW", final={"DONE"})
        pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)
        deployed(conn, pipeline)
    with pytest.raises(NotFound, match=r"p\.work, q\.work"):
        pause(conn, "work")
    assert pause(conn, "work", pipeline="q")
    assert pause(conn, "p.work")
    for wrong in ("wark", "r.work"):
        with pytest.raises(NotFound):
            resume(conn, wrong)
    with pytest.raises(InvalidInput):
        pause(conn, "")
    assert value(conn, "SELECT count(*) FROM outbox.pauses") == 2
