"""Deploy writes what triggers enforce, refuses to strand anyone, and re-routes what is waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import Post, deployed, drain, make_posts, status_of, value
from outbox import Pipeline, Stranded
from outbox.definition import deploy

Conn = psycopg.Connection[Any]


def pipeline(**stages: tuple[str, str]) -> Pipeline[Any]:
    made: Pipeline[Any] = Pipeline("p", initial="NEW", final={"DONE"})
    for name, (on, to) in stages.items():
        made.stage(name, on=on, to=to)(lambda run: None)
    return made


def test_check_tells_what_would_change_and_changes_nothing(conn: Conn) -> None:
    lines = deploy.check(conn, make_posts())
    assert "new status RECEIVED (taken by enrich)" in lines
    assert "new legal change ENRICHED -> APPROVED" in lines
    assert value(conn, "SELECT count(*) FROM outbox.routes") == 0
    assert deploy.deploy(conn, make_posts()) == lines
    assert deploy.check(conn, make_posts()) == []
    assert deploy.deploy(conn, make_posts()) == [], "a second deploy changes nothing"


def test_a_status_that_workflows_stand_in_cannot_go(conn: Conn) -> None:
    deployed(conn, pipeline(work=("NEW", "MIDDLE"), finish=("MIDDLE", "DONE")))
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a'), ('p', 'b')")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'MIDDLE'")
    shorter = pipeline(work=("NEW", "DONE"))
    for act in (deploy.check, deploy.deploy):
        with pytest.raises(Stranded, match="MIDDLE: 2") as refused:
            act(conn, shorter)
        assert refused.value.workflows == {"MIDDLE": 2}
    assert value(conn, "SELECT count(*) FROM outbox.routes WHERE status = 'MIDDLE'") == 1
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE'")
    assert "status MIDDLE is removed" in deploy.deploy(conn, shorter)


def test_workflows_that_wait_follow_their_status_to_another_stage(conn: Conn, dsn: str) -> None:
    deployed(conn, pipeline(work=("NEW", "DONE")))
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    renamed = pipeline(better=("NEW", "DONE"))
    deployed(conn, renamed)
    assert conn.execute("SELECT stage, attempt FROM outbox.jobs").fetchall() == [("better", 0)]
    drain(renamed, dsn)
    assert status_of(conn, "a") == "DONE"


def test_a_parked_status_that_gets_a_stage_gets_its_jobs_and_the_reverse(conn: Conn) -> None:
    parked = pipeline()
    parked.allow("NEW", to="DONE")
    deployed(conn, parked)
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0
    deployed(conn, pipeline(work=("NEW", "DONE")))
    assert value(conn, "SELECT stage FROM outbox.jobs") == "work"
    deployed(conn, parked)
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_a_deploy_waits_for_transactions_that_use_the_old_routes(conn: Conn, connect: Callable[..., Conn]) -> None:
    deployed(conn, pipeline(work=("NEW", "DONE")))
    busy = connect(autocommit=False)
    busy.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    conn.execute("SET lock_timeout = '50ms'")
    with conn.transaction(), pytest.raises(psycopg.errors.LockNotAvailable):
        conn.execute(deploy.SQL["deploy_lock"])
    conn.execute("RESET lock_timeout")
    busy.commit()
    deployed(conn, pipeline(better=("NEW", "DONE")))
    assert value(conn, "SELECT stage FROM outbox.jobs") == "better"


def test_a_deploy_that_waits_lets_others_go_on_between_its_tries(
    conn: Conn, connect: Callable[..., Conn], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(conn)
    deployed(conn, pipeline(work=("NEW", "DONE")))
    busy, other = connect(autocommit=False), connect()
    busy.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('p', 'a')")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        other.execute("SET lock_timeout = '60s'")
        make_posts().submit(other, f"e{len(pauses)}", Post())

    monkeypatch.setattr(deploy, "TABLE_PATIENCE", (0.01, 0.02, 0.03))
    monkeypatch.setattr(deploy.time, "sleep", pause)
    with pytest.raises(psycopg.errors.LockNotAvailable):
        deployed(conn, pipeline(better=("NEW", "DONE")))
    assert pauses == [0.01, 0.02], "and it gives up after the last try"
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 2


def test_pipelines_do_not_disturb_each_other(conn: Conn) -> None:
    deployed(conn)
    deployed(conn, pipeline(work=("NEW", "DONE")))
    assert deploy.check(conn, make_posts()) == []
    assert value(conn, "SELECT count(DISTINCT pipeline) FROM outbox.routes") == 2
