"""A deploy renames statuses of the children's pipeline while code of the version before starts them and waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.pipelines import deployed, drain, status_of, value
from kit.waits import Task, families
from outbox import Go, Pipeline, Run, Stranded, WaitForChildren
from outbox.definition import deploy

Conn = psycopg.Connection[Any]
WAIT: WaitForChildren[Any] = WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD"})
NAMES = {"NEW": "ASKED", "BAD": "WORSE", "CANCELLED": "STOPPED"}


def tasks_v2(renames: dict[str, str] | None = None, **names: str) -> Pipeline[Task]:
    """`tasks` of kit.waits, whose statuses have other names. They end as BAD is called now."""
    at = {name: names.get(name, name) for name in ("NEW", "DONE", "BAD", "CANCELLED")}
    newer: Pipeline[Task] = Pipeline(
        "tasks", data=Task, initial=at["NEW"], final={at["DONE"], at["BAD"], at["CANCELLED"]}
    )
    newer.stage("work", on=at["NEW"], to={at["DONE"], at["BAD"]})(lambda run: Go(at["BAD"]))
    newer.allow(at["NEW"], to=at["CANCELLED"])
    for old, new in (names if renames is None else renames).items():
        newer.rename(old, new)
    return newer


def split_during(
    conn: Conn, dsn: str, newer: Pipeline[Task], wait: Any = WAIT, **options: Any
) -> tuple[Pipeline[Task], Pipeline[Task]]:
    """Deploys the first versions, and `newer` while the handler of the parent runs. Returns the first versions."""

    def spawn(run: Run[Task]) -> None:
        run.spawn(tasks, "t", Task(), cancel="CANCELLED")
        with psycopg.connect(dsn, autocommit=True) as other:
            deploy.deploy(other, newer)

    parents, tasks = families(spawn, wait, **options)
    deployed(conn, tasks)
    deployed(conn, parents)
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    return parents, tasks


@pytest.mark.parametrize("transaction", [False, True])
def test_a_failed_child_of_the_renamed_pipeline_is_one_for_a_parent_with_the_former_names(
    conn: Conn, dsn: str, transaction: bool
) -> None:
    parents, _ = split_during(conn, dsn, newer := tasks_v2(**NAMES), transaction=transaction)
    assert status_of(conn, "p") == "WAITING"
    drain([newer, parents], dsn)
    assert (status_of(conn, "t"), status_of(conn, "p")) == ("WORSE", "FAILED")


def test_a_child_is_cancelled_to_the_new_name_of_the_status_that_its_parent_named(conn: Conn, dsn: str) -> None:
    parents, _ = split_during(conn, dsn, newer := tasks_v2(**NAMES))
    assert value(conn, "SELECT cancel_to FROM outbox.children") == "STOPPED"
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = 'p'")
    drain(parents, dsn)
    assert status_of(conn, "t") == "STOPPED"
    assert newer


def _once(conn: Conn) -> None:
    deploy.deploy(conn, tasks_v2(BAD="WORSE", CANCELLED="STOPPED"))


def _twice(conn: Conn) -> None:
    """The code of the last version no longer has the first rename."""
    deploy.deploy(conn, tasks_v2(BAD="POOR", CANCELLED="ENDED"))
    deploy.deploy(conn, tasks_v2({"POOR": "WORSE", "ENDED": "STOPPED"}, BAD="WORSE", CANCELLED="STOPPED"))


def _long_ago(conn: Conn) -> None:
    """The code no longer has the renames, but this database has known the former names."""
    _once(conn)
    deploy.deploy(conn, tasks_v2({}, BAD="WORSE", CANCELLED="STOPPED", NEW="NEW"))


def _elsewhere(conn: Conn) -> None:
    """This database has never known the former names, as it was made after the rename."""
    conn.execute("DELETE FROM outbox.pipelines WHERE pipeline = 'tasks'")
    _once(conn)


def _in_a_later_deploy(conn: Conn) -> None:
    """The statuses had their names before the code said what they were called elsewhere."""
    conn.execute("DELETE FROM outbox.pipelines WHERE pipeline = 'tasks'")
    deploy.deploy(conn, tasks_v2({}, BAD="WORSE", CANCELLED="STOPPED"))
    assert deploy.deploy(conn, tasks_v2(BAD="WORSE", CANCELLED="STOPPED")) == [
        "status WORSE was called BAD",
        "status STOPPED was called CANCELLED",
    ]
    assert deploy.deploy(conn, tasks_v2(BAD="WORSE", CANCELLED="STOPPED")) == []


@pytest.mark.parametrize("deploys", [_once, _twice, _long_ago, _elsewhere, _in_a_later_deploy])
def test_former_names_are_understood_as_long_as_no_status_has_them_again(
    conn: Conn, dsn: str, deploys: Callable[[Conn], None]
) -> None:
    parents, tasks = families(lambda run: run.spawn(tasks, f"of-{run.entity_id}", Task(), cancel="CANCELLED"), WAIT)
    deployed(conn, tasks)
    deployed(conn, parents)
    deploys(conn)
    parents.submit_many(conn, [("p", Task()), ("q", Task())])
    drain(parents, dsn)
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = 'q'")
    drain(parents, dsn)
    drain([parents, tasks_v2(BAD="WORSE", CANCELLED="STOPPED")], dsn)
    assert [status_of(conn, each) for each in ("of-p", "p", "of-q")] == ["WORSE", "FAILED", "STOPPED"]


def test_a_status_that_takes_the_former_name_of_another_is_meant_by_it(conn: Conn, dsn: str) -> None:
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task(), cancel="CANCELLED"), WAIT)
    deployed(conn, tasks)
    deployed(conn, parents)
    deploy.deploy(conn, tasks_v2(BAD="WORSE", CANCELLED="STOPPED"))
    # Now those that end well do so in BAD, and STOPPED is no more.
    deploy.deploy(conn, newest := tasks_v2({"DONE": "BAD"}, DONE="BAD", BAD="WORSE"))
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    assert value(conn, "SELECT cancel_to FROM outbox.children") == "CANCELLED"
    assert value(conn, "SELECT failed FROM outbox.waits") == ["BAD"]
    drain([parents, newest], dsn)
    assert (status_of(conn, "t"), status_of(conn, "p")) == ("WORSE", "DONE")


@pytest.mark.parametrize("transaction", [False, True])
@pytest.mark.parametrize(
    ("gone", "wait"),
    [("CANCELLED", WaitForChildren(to="MERGED")), ("BAD", WAIT), ("BAD", WaitForChildren(
        to="MERGED", on_failure="FAILED", failed={"BAD", "DONE"}))],
)  # fmt: skip
def test_a_status_of_children_that_is_no_more_leaves_the_job_to_newer_workers_with_the_reason(
    conn: Conn, dsn: str, gone: str, wait: Any, transaction: bool
) -> None:
    split_during(conn, dsn, tasks_v2({}, **{gone: "OTHER"}), wait, transaction=transaction)
    assert status_of(conn, "p") == "NEW"
    assert value(conn, "SELECT count(*) FROM outbox.workflow_states WHERE entity_id = 't'") == 0
    (told,) = conn.execute("SELECT error FROM outbox.jobs WHERE (attempt, released) = (0, 1)").fetchone() or ("",)
    has = ", ".join(sorted({"NEW", "DONE", "BAD", "CANCELLED", "OTHER"} - {gone}))
    assert told.startswith(
        f'unknown status: pipeline "parents", entity "p" names "{gone}", and its children\'s pipeline "tasks" has {has}: '
    )
    newer, _ = families(lambda run: None, WaitForChildren(to="MERGED"))
    conn.execute("UPDATE outbox.jobs SET run_at = now()")
    drain(newer, dsn)
    assert status_of(conn, "p") == "DONE"


def test_a_status_of_another_pipeline_may_be_named_though_no_child_is_of_that_one(conn: Conn, dsn: str) -> None:
    """A parent that has children of two pipelines, now of one and now of the other, names the statuses of both."""
    wait: WaitForChildren[Any] = WaitForChildren(to="MERGED", on_failure="FAILED", failed={"BAD", "LOST"})
    others: Pipeline[Task] = Pipeline("others", data=Task, initial="NEW", final={"FOUND", "NOWHERE"})
    others.stage("seek", on="NEW", to={"FOUND", "NOWHERE"})(lambda run: Go("NOWHERE"))
    others.rename("LOST", "NOWHERE")
    deployed(conn, others)
    parents, tasks = families(
        lambda run: run.spawn(tasks if run.entity_id == "p" else others, f"of-{run.entity_id}", Task()), wait,
        lambda run: Go("BAD"),
    )  # fmt: skip
    deployed(conn, tasks)
    deployed(conn, parents)
    parents.submit_many(conn, [("p", Task()), ("q", Task())])
    drain([parents, tasks, others], dsn)
    assert (status_of(conn, "p"), status_of(conn, "q")) == ("FAILED", "FAILED")


def test_a_deploy_that_takes_away_where_children_are_cancelled_to_is_refused(conn: Conn, dsn: str) -> None:
    parents, tasks = families(lambda run: run.spawn(tasks, "t", Task(), cancel="CANCELLED"), WAIT)
    deployed(conn, tasks)
    deployed(conn, parents)
    parents.submit(conn, "p", Task())
    drain(parents, dsn)
    told = r"no longer knows status CANCELLED, to which 1 workflow would be cancelled when the parent ends \(t\)"
    with pytest.raises(Stranded, match=told):
        deploy.deploy(conn, tasks_v2({}, CANCELLED="OTHER"))
    deploy.deploy(conn, newer := tasks_v2(CANCELLED="OTHER"))
    drain(newer, dsn)
    deploy.deploy(conn, tasks_v2({}))  # none is left that could be cancelled
