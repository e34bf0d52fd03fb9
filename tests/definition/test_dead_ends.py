"""Dead ends, stages that nobody reaches and workflows that wait for nothing are told before they are a riddle."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest

import outbox
from kit.commands import Outbox
from kit.pipelines import deployed, make_posts, value
from kit.waits import PAYMENT, QUESTION, TIMED, families, orders, waiting
from outbox import DefinitionError, Pipeline
from outbox.definition import dead_ends
from outbox.operations import doctor

Conn = psycopg.Connection[Any]


def with_dead_ends() -> Pipeline[Any]:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"}, cancelled="CANCELLED")
    pipeline.stage("work", on="NEW", to={"ZZ", "DONE"}, running="AT_WORK")(lambda run: None)
    pipeline.stage("lost", on="NOWHERE", to="DONE")(lambda run: None)
    pipeline.allow("ISLAND", to="BEACH")
    pipeline.allow("BEACH", to="ISLAND")
    return pipeline


def test_dead_ends_and_what_is_out_of_reach_are_named() -> None:
    assert dead_ends.look(with_dead_ends()) == [
        "there is a status BEACH, which no change leads to from NEW",
        "there is a status ISLAND, which no change leads to from NEW",
        "stage lost takes NOWHERE, which no change leads to from NEW",
        "status ZZ is a dead end: it isn't final, no stage takes it, and no change leads out of it",
    ], "a cancellation is no way on"


@pytest.mark.parametrize("pipeline", [make_posts(), orders(None), *families(lambda run: None, None)])
def test_of_a_sound_pipeline_nothing_is_said(pipeline: Pipeline[Any]) -> None:
    assert dead_ends.look(pipeline) == []


def test_a_deadline_is_a_way_on() -> None:
    pipeline: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    pipeline.deadline("NEW", days=1, to="DONE")
    assert dead_ends.look(pipeline) == []


def told(conn: Conn, *pipelines: Pipeline[Any]) -> list[tuple[str, str]]:
    found = doctor.examine(conn, pipelines)
    return [(each.level, each.what) for each in found if "for nothing" in each.what or "dead end" in each.what]


def test_deploy_warns_and_with_strict_refuses(conn: Conn, dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DefinitionError, match="status ZZ is a dead end"):
        outbox.deploy(conn, with_dead_ends(), strict=True)
    assert value(conn, "SELECT count(*) FROM outbox.pipelines") == 0
    with caplog.at_level(logging.WARNING, "outbox.deploy"):
        outbox.deploy(conn, with_dead_ends())
    assert "p: status ZZ is a dead end" in caplog.text
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('p', 'a', 'ZZ')")
    line = "pipeline p: 1 workflow in ZZ waits for nothing: no stage takes it, and no change leads out of it"
    assert ("bad", line) in told(conn, with_dead_ends())


def test_the_command_warns_and_with_strict_refuses(conn: Conn, dsn: str) -> None:
    run = Outbox(dsn)
    said = run("deploy", "--strict", "--app", "apps.cli:sloppy", code=1).err
    assert "stage lost takes NOWHERE" in said
    done = run("deploy", "--app", "apps.cli:sloppy")
    assert "warning: sloppy: stage lost takes NOWHERE" in done.err
    assert "warning" not in done.out
    assert run("deploy", "--strict", "--app", "apps.cli:tickets").err == ""


@pytest.mark.parametrize("wait", [QUESTION, TIMED, PAYMENT])
def test_of_workflows_that_wait_nothing_is_said_and_of_one_that_lost_its_wait_something(
    conn: Conn, dsn: str, wait: Any
) -> None:
    pipeline = waiting(conn, dsn, wait)
    assert told(conn, pipeline) == []
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('orders', 'b', 'WAITING')"
    )
    words = "pipeline orders: 1 workflow in WAITING waits for nothing: no stage takes it, with no question, signal,"
    assert [(level, what.startswith(words)) for level, what in told(conn)] == [("warn", True)]
    assert "for nothing" in str(dead_ends.unattended(conn, "orders")[0])
    assert dead_ends.unattended(conn, "others") == []


def test_a_status_that_people_change_without_being_asked_is_no_fault(conn: Conn) -> None:
    posts = deployed(conn, make_posts())
    conn.execute(
        "INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status) VALUES ('posts', 'a', 'WAITING_FOR_REVIEW')"
    )
    assert told(conn, posts) == []
