"""Reactions: what runs after a change, at least once, without being a step; and stages that are paused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import QUICK, Post, deployed, drain, status_of, value
from outbox import Backoff, Change, DefinitionError, Go, Pipeline, Run, Worker
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
seen: list[Change] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def posts(**reactions: Callable[[Run[Change]], Any]) -> Pipeline[Post]:
    """RECEIVED -> WAITING (-> APPROVED) -> DONE, with reactions to WAITING, by name."""
    pipeline: Pipeline[Post] = Pipeline("posts", data=Post, initial="RECEIVED", final={"DONE"})
    pipeline.stage("check", on="RECEIVED", to="WAITING")(lambda run: Post(content="checked"))
    pipeline.stage("act", on="APPROVED", to="DONE")(lambda run: None)
    pipeline.allow("WAITING", to="APPROVED")
    for name, function in reactions.items():
        pipeline.on_change("WAITING", name=name, retry=QUICK)(function)
    return pipeline


def note(run: Run[Change]) -> None:
    seen.append(run.data)


def test_a_reaction_is_told_of_the_change_and_is_no_step(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, posts(notify=note))
    pipeline.submit_many(conn, [("a", Post(content="new")), ("b", Post())])
    drain(pipeline, dsn)
    assert [status_of(conn, entity) for entity in "ab"] == ["WAITING", "WAITING"]
    first = next(change for change in seen if change.entity_id == "a")
    assert len(seen) == 2
    assert (first.pipeline, first.from_status, first.status, first.version) == ("posts", "RECEIVED", "WAITING", 2)
    assert first.actor.startswith("worker-")
    assert first.data["content"] == "checked"
    made = "SELECT entity_id, current_status FROM outbox.workflow_states WHERE pipeline = 'posts/notify' ORDER BY 1"
    assert conn.execute(made).fetchall() == [
        (f"{entity}@2@{value(conn, 'SELECT id FROM outbox.workflow_states WHERE entity_id = %s', entity)}", "DONE")
        for entity in "ab"
    ]


def test_two_reactions_of_one_name_are_refused() -> None:
    pipeline = posts(notify=note)
    with pytest.raises(DefinitionError, match="two reactions"):
        pipeline.on_change("DONE", name="notify")(note)
    with pytest.raises(DefinitionError, match="at least one status"):
        pipeline.on_change()


def test_a_start_and_a_change_by_hand_are_changes_too(conn: Conn, dsn: str) -> None:
    pipeline = posts()
    pipeline.on_change("RECEIVED", "APPROVED", name="notify")(note)
    deployed(conn, pipeline)
    conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'a')")
    drain(pipeline, dsn)
    with conn.transaction():
        conn.execute("SELECT set_config('outbox.actor', 'sarah', true), set_config('outbox.reason', 'fine', true)")
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'APPROVED' WHERE entity_id = 'a'")
    drain(pipeline, dsn)
    assert [(change.from_status, change.status, change.reason) for change in seen] == [
        (None, "RECEIVED", None),
        ("WAITING", "APPROVED", "fine"),
    ]
    assert seen[1].actor == "sarah"


def test_reactions_fail_for_themselves(conn: Conn, dsn: str) -> None:
    """One is tried again, one is dead and can be retried, one is well; the workflow goes on."""
    tries: list[int] = []

    def flaky(run: Run[Change]) -> None:
        tries.append(run.attempt)
        if run.attempt == 1:
            raise ValueError("not yet")

    def broken(run: Run[Change]) -> None:
        if not mended:
            raise ValueError("never")

    mended: list[bool] = []
    pipeline = posts(flaky=flaky, well=note)
    pipeline.on_change("WAITING", name="broken", retry=Backoff(attempts=1))(broken)
    deployed(conn, pipeline).submit(conn, "a", Post())
    while value(conn, "SELECT count(*) FROM outbox.jobs"):
        drain(pipeline, dsn)
    outbox = Outbox(dsn)
    assert (tries, len(seen)) == ([1, 2], 1)
    ((dead, entity),) = [(row["pipeline"], row["entity_id"]) for row in outbox("dead", "--json").json]
    assert (dead, entity[:4]) == ("posts/broken", "a@2@")
    outbox("set-status", "a", "APPROVED", "--pipeline", "posts")
    mended.append(True)
    outbox("retry", "--all")
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "DONE"
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0


def test_a_change_that_is_rolled_back_has_no_reaction(conn: Conn, dsn: str) -> None:
    pipeline = posts()
    pipeline.on_change("APPROVED", name="notify")(note)
    deployed(conn, pipeline).submit(conn, "a", Post())
    drain(pipeline, dsn)
    with conn.transaction(force_rollback=True):
        conn.execute("UPDATE outbox.workflow_states SET current_status = 'APPROVED'")
    drain(pipeline, dsn)
    assert seen == []


def test_two_waits_in_one_batch_react_each(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, posts(notify=note))
    pipeline.submit_many(conn, [(f"e{n}", Post()) for n in range(50)])
    pipeline.submit(conn, "e" * 512, Post())
    drain(pipeline, dsn)
    assert len({change.entity_id for change in seen}) == len(seen) == 51


def test_deploy_writes_reactions_and_takes_them_away(conn: Conn, dsn: str) -> None:
    lines = deploy.deploy(conn, posts(notify=note))
    assert "posts/notify: new status DUE (taken by notify)" in lines
    assert "new status WAITING (no stage takes it; then notify)" in lines
    assert deploy.deploy(conn, posts(notify=note)) == []
    assert deploy.deploy(conn, posts()) == ["status WAITING: (no stage takes it; then notify) -> (no stage takes it)"]


def test_a_reaction_to_a_status_that_never_comes_is_refused() -> None:
    pipeline = posts()
    pipeline.on_change("NOWHERE")(note)
    with pytest.raises(DefinitionError, match="no change leads to"):
        pipeline.routes()


def test_reactions_that_are_done_go_after_a_week(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, posts(notify=note))
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert value(conn, "SELECT outbox.reactions_forget(7, 10)") == 0
    conn.execute("ALTER TABLE outbox.workflow_states DISABLE TRIGGER workflow_move_version")
    conn.execute(
        "UPDATE outbox.workflow_states SET updated_at = now() - interval '8 days' WHERE pipeline = 'posts/notify'"
    )
    assert value(conn, "SELECT outbox.reactions_forget(7, 10)") == 1
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 1
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 2


# Pauses.


def test_a_paused_stage_waits_in_all_workers(conn: Conn, dsn: str) -> None:
    pipeline = deployed(conn, posts())
    outbox = Outbox(dsn)
    assert outbox("pause", "check", "--reason", "the service is down", "--by", "sarah").out == "posts.check is paused\n"
    assert outbox("pause", "posts.check").out == "posts.check was already paused\n"
    pipeline.submit(conn, "a", Post())
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "RECEIVED"
    assert value(conn, "SELECT attempt FROM outbox.jobs") == 0
    assert " paused" in outbox("status").out
    assert conn.execute("SELECT paused_by, reason FROM outbox.pauses").fetchall() == [("sarah", "the service is down")]
    assert outbox("resume", "check").out == "posts.check runs again\n"
    assert outbox("resume", "check").out == "posts.check was not paused\n"
    drain(pipeline, dsn)
    assert status_of(conn, "a") == "WAITING"
    assert 'has a stage "nothing"' in outbox.fails("pause", "nothing")


def test_what_runs_goes_on_and_other_stages_too(conn: Conn, dsn: str) -> None:
    pipeline: Pipeline[Post] = Pipeline("posts", data=Post, initial="RECEIVED", final={"DONE"})

    @pipeline.stage("check", on="RECEIVED", to="CHECKED")
    async def check(run: Run[Post]) -> Go[Post]:
        conn.execute("INSERT INTO outbox.pauses (pipeline, stage) VALUES ('posts', 'check') ON CONFLICT DO NOTHING")
        return Go("CHECKED")

    pipeline.stage("act", on="CHECKED", to="DONE")(lambda run: None)
    deployed(conn, pipeline).submit(conn, "a", Post())
    worker: Worker = drain(pipeline, dsn)
    assert (status_of(conn, "a"), worker.counts.done) == ("DONE", 2)
