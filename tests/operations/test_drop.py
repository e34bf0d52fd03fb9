"""A pipeline is dropped with all that a deploy has written of it, and never from under its workflows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import Post, deployed, drain, make_posts, value
from kit.servers import wait_for
from outbox import NotFound, OutboxError, Pipeline, PipelineInUse, Run, UnknownPipeline, pause
from outbox.database.refusals import raised_as_ours
from outbox.operations import drop

Conn = psycopg.Connection[Any]
OF_A_PIPELINE = [
    "pipelines", "routes", "legal_changes", "stages", "limits", "schedules", "pauses", "status_counts", "partition_rates"
]  # fmt: skip


def full(name: str = "posts") -> Pipeline[Any]:
    """A pipeline with all that a deploy can write."""
    pipeline: Pipeline[Any] = Pipeline(name, data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE", concurrency=2, rate="5/second", partition="content")(lambda run: None)

    @pipeline.every("0 0 1 1 *", name="yearly")
    def yearly(tick: Any) -> None:
        pass

    @pipeline.on_change("DONE", name="notify")
    def notify(run: Run[Any]) -> None:
        pass

    return pipeline


def rows_of(conn: Conn, pipeline: str) -> dict[str, int]:
    return {
        table: value(
            conn, f"SELECT count(*) FROM outbox.{table} WHERE pipeline IN (%s, %s)", pipeline, f"{pipeline}/notify"
        )
        for table in OF_A_PIPELINE
    }


def lived(conn: Conn, dsn: str) -> Pipeline[Any]:
    pipeline = deployed(conn, full())
    deployed(conn, full("others"))
    pause(conn, "others.work", by="sarah")
    pipeline.submit_many(conn, [(f"e{n}", Post()) for n in range(5)])
    drain(pipeline, dsn)
    pipeline.submit(conn, "f", Post())
    pause(conn, "posts.work", by="sarah")
    return pipeline


def test_a_bare_delete_of_a_pipeline_with_workflows_is_refused(conn: Conn, dsn: str) -> None:
    lived(conn, dsn)
    before = rows_of(conn, "posts")
    with pytest.raises(psycopg.Error) as refused:
        conn.execute("DELETE FROM outbox.pipelines WHERE pipeline = 'posts'")
    assert refused.value.sqlstate == "OB031"
    with pytest.raises(PipelineInUse):
        drop.drop(conn, "posts")
    assert rows_of(conn, "posts") == before


@pytest.mark.parametrize("with_history", [False, True])
def test_it_goes_with_all_that_belongs_to_it_and_others_stay(conn: Conn, dsn: str, with_history: bool) -> None:
    lived(conn, dsn)
    others, history = rows_of(conn, "others"), value(conn, "SELECT count(*) FROM outbox.state_changes")
    deleted = drop.drop(conn, "posts", with_workflows=True, with_history=with_history)
    assert deleted == 11, "six, and the reactions to five"
    assert set(rows_of(conn, "posts").values()) == {0}
    assert rows_of(conn, "others") == others
    for table in ("workflow_states", "jobs", "dead_jobs"):
        assert value(conn, f"SELECT count(*) FROM outbox.{table}") == 0
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == (0 if with_history else history)
    with pytest.raises(UnknownPipeline), raised_as_ours():
        conn.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'g')")
    assert deployed(conn, full()).submit(conn, "e1", Post()).created


def test_a_delete_of_a_pipeline_without_workflows_takes_the_rest_along(conn: Conn) -> None:
    deployed(conn, full())
    conn.execute("DELETE FROM outbox.pipelines")
    assert set(rows_of(conn, "posts").values()) == {0}


def test_a_reaction_is_not_dropped_from_under_its_pipeline(conn: Conn) -> None:
    deployed(conn, full())
    with pytest.raises(OutboxError, match='"posts/notify" is a reaction of "posts"'):
        drop.drop(conn, "posts/notify", with_workflows=True)
    with pytest.raises(NotFound):
        drop.drop(conn, "nothing")
    quiet: Pipeline[Any] = Pipeline("posts", data=Post, initial="NEW", final={"DONE"})
    quiet.stage("work", on="NEW", to="DONE")(lambda run: None)
    deployed(conn, quiet)
    assert drop.drop(conn, "posts/notify") == 0, "nothing reacts any more"


def test_a_workflow_that_starts_meanwhile_is_seen_or_finds_no_pipeline(conn: Conn, connect: Any) -> None:
    deployed(conn, make_posts())
    busy = connect(autocommit=False)
    busy.execute("INSERT INTO outbox.workflow_states (pipeline, entity_id) VALUES ('posts', 'a')")
    conn.execute("SET lock_timeout = '50ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        conn.execute("DELETE FROM outbox.pipelines")
    conn.execute("RESET lock_timeout")
    busy.commit()
    with pytest.raises(psycopg.Error, match="has workflows"):
        conn.execute("DELETE FROM outbox.pipelines")


def test_the_history_of_a_change_that_it_waited_for_is_deleted(conn: Conn, connect: Any, dsn: str) -> None:
    pipeline = deployed(conn, full())
    pipeline.submit_many(conn, [("a", Post()), ("b", Post())])
    busy, dropping = connect(autocommit=False), connect()
    busy.execute("UPDATE outbox.workflow_states SET current_status = 'DONE' WHERE entity_id = 'a'")
    with ThreadPoolExecutor(1) as thread:
        dropped = thread.submit(drop.drop, dropping, "posts", with_workflows=True, with_history=True)
        waits = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        wait_for(lambda: value(conn, waits, busy.info.backend_pid) == 1)
        busy.commit()
        assert dropped.result() == 3, "the reaction to the change as well"
    assert value(conn, "SELECT count(*) FROM outbox.state_changes") == 0


def test_the_command_deletes_only_if_it_is_told_twice(conn: Conn, dsn: str) -> None:
    deployed(conn, make_posts()).submit(conn, "a", Post())
    run = Outbox(dsn)
    said = run("drop", "posts", "--with-workflows", code=2)
    assert "posts: 1 workflow\n" in said.out
    assert "--yes" in said.err
    assert "outbox drop posts --with-workflows" in run("drop", "posts", "--yes", code=1).err
    assert run("drop", "posts", "--with-workflows", "--yes").out == "posts is dropped, with 1 workflow\n"
    assert "not deployed" in run("drop", "posts", "--yes", code=1).err
