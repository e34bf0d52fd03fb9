"""Fan-out and join: children in the same transaction; the last one's commit moves the parent, once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import psycopg
import pytest

from kit.commands import Outbox
from kit.pipelines import deployed, drain, status_of, value
from kit.servers import Process, wait_for
from kit.waits import Task, families
from outbox import Go, InvalidInput, Pipeline, Reject, Run, WaitForChildren, Worker
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
Spawn = Callable[..., Process]


ALL_WELL = WaitForChildren(to="MERGED")


def started(conn: Conn, parents: Pipeline[Task], tasks: Pipeline[Task], count: int = 1) -> None:
    deployed(conn, tasks)
    deployed(conn, parents)
    parents.submit_many(conn, [(f"p{n}", Task(n=n)) for n in range(count)])


def drain_both(dsn: str, *pipelines: Pipeline[Any]) -> Worker:
    return drain(list(pipelines), dsn)


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize("children", [0, 1, 100])
def test_the_last_childs_commit_moves_the_parent(conn: Conn, dsn: str, children: int, transaction: bool) -> None:
    parents, tasks = families(
        lambda run: [run.spawn(tasks, f"{run.entity_id}-{n}", Task(n=n)) for n in range(children)],
        ALL_WELL,
        transaction=transaction,
    )
    started(conn, parents, tasks, 3)
    drain_both(dsn, parents, tasks)
    assert [status_of(conn, f"p{n}") for n in range(3)] == ["DONE"] * 3
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE pipeline = 'tasks'") == 3 * children
    merged = (
        "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'MERGED' AND reason = 'its children have ended'"
    )
    assert value(conn, merged) == 3
    assert value(conn, "SELECT count(*) FROM outbox.waits") + value(conn, "SELECT count(*) FROM outbox.jobs") == 0


def test_children_are_started_only_if_the_attempt_commits(conn: Conn, dsn: str) -> None:
    seen: list[int] = []

    def spawn(run: Run[Task]) -> None:
        seen.append(run.attempt)
        run.spawn(tasks, f"child-{run.attempt}", Task())
        if run.attempt == 1:
            raise ValueError("after spawning")

    parents, tasks = families(spawn, ALL_WELL)
    started(conn, parents, tasks)
    while value(conn, "SELECT count(*) FROM outbox.jobs"):
        drain_both(dsn, parents, tasks)
    assert seen == [1, 2]
    assert conn.execute("SELECT entity_id FROM outbox.workflow_states WHERE pipeline = 'tasks'").fetchall() == [
        ("child-2",)
    ]


@pytest.mark.parametrize(("bad", "status"), [(0, "DONE"), (1, "FAILED")])
def test_a_child_that_failed_leads_elsewhere_when_all_have_ended(conn: Conn, dsn: str, bad: int, status: str) -> None:
    parents, tasks = families(
        lambda run: [run.spawn(tasks, f"t{n}", Task(n=n)) for n in range(5)],
        WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD", "CANCELLED"}),
        lambda run: Go("BAD") if run.data.n < bad else Go("DONE"),
    )
    started(conn, parents, tasks)
    drain_both(dsn, parents, tasks)
    assert status_of(conn, "p0") == status


def test_a_child_that_failed_in_an_earlier_round_counts_in_the_next_one_too(conn: Conn, dsn: str) -> None:
    rounds = count(1)
    parents, tasks = families(
        lambda run: run.spawn(tasks, f"t{next(rounds)}", Task()),
        WaitForChildren(to="MERGED", on_failure="AGAIN", failed={"BAD"}),
        lambda run: Go("BAD") if run.entity_id == "t1" else Go("DONE"),
    )
    parents.allow("WAITING", to="AGAIN")
    parents.allow("AGAIN", to="NEW")
    started(conn, parents, tasks)
    drain_both(dsn, parents, tasks)
    assert status_of(conn, "p0") == "AGAIN"
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'NEW' WHERE entity_id = 'p0'")
    drain_both(dsn, parents, tasks)
    assert status_of(conn, "p0") == "AGAIN", "as docs/children.md says"
    assert value(conn, "SELECT count(*) FROM outbox.children") == 2


def test_a_dead_child_has_not_ended(conn: Conn, dsn: str) -> None:
    def work(run: Run[Task]) -> None:
        if run.data.n == 0 and not pardoned:
            raise Reject("not this one")

    pardoned: list[bool] = []
    parents, tasks = families(lambda run: [run.spawn(tasks, f"t{n}", Task(n=n)) for n in range(3)], ALL_WELL, work)
    started(conn, parents, tasks)
    drain_both(dsn, parents, tasks)
    assert status_of(conn, "p0") == "WAITING"
    assert Outbox(dsn)("show", "p0", "--json").json["waits_for"]["children"] == 1
    pardoned.append(True)
    Outbox(dsn)("retry", "t0")
    drain_both(dsn, parents, tasks)
    assert status_of(conn, "p0") == "DONE"


def test_what_is_there_already_does_not_become_a_child(conn: Conn, dsn: str) -> None:
    """Nor can a workflow spawn its own parent, and wait for itself."""
    parents, tasks = families(lambda run: [run.spawn(tasks, "t", Task()), run.spawn(parents, "p0", Task())], ALL_WELL)
    deployed(conn, tasks).submit(conn, "t", Task())
    started(conn, parents, tasks)
    drain_both(dsn, parents)
    assert status_of(conn, "p0") == "DONE"
    assert value(conn, "SELECT count(*) FROM outbox.children") == 0


def test_a_parents_end_cancels_its_children(conn: Conn, dsn: str) -> None:
    parents, tasks = families(
        lambda run: [run.spawn(tasks, f"t{n}", Task(), cancel="CANCELLED" if n else None) for n in range(4)],
        ALL_WELL,
    )
    started(conn, parents, tasks)
    drain_both(dsn, parents)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'DONE' WHERE entity_id = 't3'")
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = 'p0'")
    drain_both(dsn, parents)
    assert [status_of(conn, f"t{n}") for n in range(4)] == ["NEW", "CANCELLED", "CANCELLED", "DONE"]
    assert value(conn, "SELECT count(*) FROM outbox.orphans") == 0
    why = "SELECT actor || ': ' || reason FROM outbox.state_changes WHERE to_status = 'CANCELLED' AND actor = 'outbox' LIMIT 1"
    assert value(conn, why) == "outbox: its parent has ended"


def test_a_child_that_is_deleted_is_not_waited_for(conn: Conn, dsn: str) -> None:
    parents, tasks = families(lambda run: [run.spawn(tasks, f"t{n}", Task()) for n in range(2)], ALL_WELL)
    started(conn, parents, tasks)
    drain_both(dsn, parents)
    conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 't0'")
    assert status_of(conn, "p0") == "WAITING"
    conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 't1'")
    assert status_of(conn, "p0") == "MERGED"


def test_show_names_the_family(conn: Conn, dsn: str) -> None:
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task()), ALL_WELL)
    started(conn, parents, tasks)
    drain_both(dsn, parents)
    outbox = Outbox(dsn)
    assert outbox("show", "p0", "--json").json["children"] == [
        {"pipeline": "tasks", "entity_id": "t", "status": "NEW", "ended": False}
    ]
    assert outbox("show", "t", "--json").json["parent"]["entity_id"] == "p0"
    assert "children" in outbox("show", "p0").out


@pytest.mark.parametrize(
    "make",
    [
        lambda run, tasks: run.spawn(tasks, "", Task()),
        lambda run, tasks: run.spawn(tasks, "t", {"n": "many"}),
        lambda run, tasks: run.spawn(tasks, "t", Task(), cancel="NEW"),
        lambda run, tasks: WaitForChildren(to="MERGED", on_failure="FAILED"),
        lambda run, tasks: WaitForChildren(to="MERGED", failed="BAD", on_failure="FAILED"),
        lambda run, tasks: WaitForChildren(to="MERGED", failed={"BAD"}),
    ],
)
def test_what_can_not_be_spawned_is_refused_in_the_handler(conn: Conn, dsn: str, make: Callable[..., Any]) -> None:
    refused: list[str] = []

    def spawn(run: Run[Task]) -> None:
        try:
            make(run, tasks)
        except InvalidInput as error:
            refused.append(error.field)

    parents, tasks = families(spawn, ALL_WELL)
    started(conn, parents, tasks)
    drain_both(dsn, parents, tasks)
    assert len(refused) == 1
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE pipeline = 'tasks'") == 0


def test_an_unknown_pipeline_of_a_child_fails_its_parent_alone(conn: Conn, dsn: str) -> None:
    parents, tasks = families(
        lambda run: run.spawn(tasks, f"{run.entity_id}-t", Task()) if run.data.n else None, ALL_WELL
    )
    deployed(conn, parents)
    parents.submit_many(conn, [("p0", Task(n=0)), ("p1", Task(n=1))])
    while value(conn, "SELECT count(*) FROM outbox.jobs"):
        drain_both(dsn, parents)
    assert (status_of(conn, "p0"), status_of(conn, "p1")) == ("DONE", "NEW")
    assert 'unknown pipeline "tasks"' in value(conn, "SELECT error FROM outbox.dead_jobs")


def test_a_hundred_children_that_end_at_once_in_many_processes_join_once(conn: Conn, dsn: str, spawn: Spawn) -> None:
    from apps.children import parents, tasks

    for pipeline in (tasks, parents):
        deploy.deploy(conn, pipeline)
    parents.submit_many(conn, [(f"p{n}", {}) for n in range(5)])
    workers = [spawn("worker", "--app", "apps.children") for _ in range(3)]
    merged = "SELECT count(*) FROM outbox.state_changes WHERE to_status = 'MERGED'"
    ended = "SELECT count(*) = 5 FROM outbox.workflow_states WHERE pipeline = 'parents' AND current_status = 'DONE'"
    wait_for(
        lambda: value(conn, "SELECT count(*) > 20 FROM outbox.state_changes WHERE to_status = 'ENDED'"), what="some end"
    )
    workers[0].kill9()
    wait_for(lambda: value(conn, ended), what="all parents have ended")
    assert value(conn, merged) == 5
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'ENDED'") == 500
