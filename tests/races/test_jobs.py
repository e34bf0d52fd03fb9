"""F04: everything that can meet at a workflow, in every order of its steps: one wins, and the books are right after.

Each test is a scene that is set up again for each interleaving, what its actors do (the engine's own functions and
statements), and what must be true in the end. See kit/interleave.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

import psycopg
import pytest

import outbox
from kit.interleave import Actor, Explore, Scene
from kit.pipelines import Post, deployed, one_stage, value
from kit.scenes import MAINTENANCE, WORKER, Table, books_are_right, deploying, holding, version
from outbox import Pipeline, Tick
from outbox.client import submit
from outbox.database import user_transaction
from outbox.definition import deploy
from outbox.engine import claim, commit, scheduler, transaction
from outbox.engine.apart import ALL
from outbox.engine.job import Failed

Conn = psycopg.Connection[Any]
Act = Callable[[Conn], Any]


ACTS = ["finish", "fail", "die", "give_back", "by_hand", "edit", "sweep", "claim_again", "retry", "delete"]


@pytest.mark.parametrize("ends", [("commit", "commit"), ("rollback", "commit"), ("commit", "rollback")])
def test_f04_of_two_that_meet_at_a_job_exactly_one_wins(conn: Conn, explore: Explore, ends: tuple[str, str]) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    for first, second in combinations_with_replacement(ACTS, 2):

        def scene(first: str = first, second: str = second) -> Scene:
            table = Table(conn, pipeline)
            one, two = holding(getattr(table, first), ends[0]), holding(getattr(table, second), ends[1])
            return Scene({f"{first}.1": one, f"{second}.2": two}, table.check)

        explore(scene)


def test_f04_completion_sweep_change_by_hand_and_heartbeat(conn: Conn, explore: Explore) -> None:
    """A worker whose beat is late: either it is buried and its job freed, or its beat counts; and one moves."""
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        conn.execute("UPDATE outbox.workers SET beat_at = now() - interval '2 hours' WHERE id = %s", [table.first])

        def beat(conn: Conn) -> bool:
            return conn.execute(WORKER["worker_beat"], {"worker": table.first, "watched": False}).fetchone() is not None

        def sweep(conn: Conn) -> list[str]:
            buried = conn.execute(MAINTENANCE["workers_bury"], {"dead": [], "leases": True, "now": None}).fetchall()
            with conn.transaction():
                freed, _, _ = conn.execute(MAINTENANCE["jobs_sweep"], {"limit": 100, **ALL}).fetchone() or (0, 0, None)
            return ["buried"] * len(buried) + ["freed"] * freed

        def check(outcomes: dict[str, Any]) -> None:
            table.check(outcomes)
            assert (outcomes["worker"] + outcomes["hand"]).count("moved") == 1
            assert outcomes["beat"] == ("buried" not in outcomes["sweep"])
            assert outcomes["sweep"] in ([], ["buried"], ["buried", "freed"])
            if "freed" in outcomes["sweep"]:
                assert outcomes["worker"] == []

        worker, hand = holding(table.finish), holding(table.by_hand)
        return Scene({"worker": worker, "sweep": sweep, "hand": hand, "beat": beat}, check)

    played = explore(scene)
    assert {(each.outcomes["hand"] == [], *each.outcomes["sweep"]) for each in played} == {
        (True,), (False,), (True, "buried"), (False, "buried"), (False, "buried", "freed"),
    }  # fmt: skip


def test_a_handlers_own_transaction_and_a_cancellation(conn: Conn, explore: Explore) -> None:
    """What the handler wrote is there exactly if it was the handler that moved the workflow."""
    conn.execute("CREATE TABLE outbox.witness (n integer)")

    def work(run: Any) -> None:
        run.connection.execute("INSERT INTO outbox.witness VALUES (1)")

    pipeline = deployed(conn, one_stage(work, transaction=True))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        conn.execute("DELETE FROM outbox.witness")

        def run(conn: Conn) -> list[str]:
            ended = user_transaction.run(conn, transaction.attempt(conn, [table.job]))
            assert isinstance(ended, transaction.Committed | transaction.NotHeld)
            return ["moved"] if isinstance(ended, transaction.Committed) else []

        def cancel(conn: Conn) -> list[str]:
            return ["moved"] if pipeline.move(conn, "e", "MOVED", by="sarah", reason="changed") == "MOVED" else []

        def check(outcomes: dict[str, Any]) -> None:
            table.check(outcomes)
            refused = isinstance(outcomes["sarah"], psycopg.Error) and outcomes["sarah"].sqlstate == "OB001"
            assert refused or outcomes["sarah"] == ["moved"]
            assert outcomes["worker"] == (["moved"] if refused else [])
            assert value(conn, "SELECT count(*) FROM outbox.witness") == refused

        return Scene({"worker": run, "sarah": cancel}, check, may_raise=(psycopg.DatabaseError,))

    played = explore(scene)
    assert {each.outcomes["worker"] == [] for each in played} == {True, False}


def test_claims_never_take_the_same_job_nor_more_than_they_may(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        conn.execute(*commit.release([table.job]))
        pipeline.submit_many(conn, [("f", Post()), ("g", Post())])

        def claiming(worker: int) -> Act:
            return holding(lambda conn: [job.workflow_id for job in table.claimed(conn, worker, 2)])

        def check(outcomes: dict[str, Any]) -> None:
            taken = [id_ for each in outcomes.values() for id_ in each]
            assert len(taken) == len(set(taken))
            assert max(map(len, outcomes.values())) == 2
            assert value(conn, "SELECT sum(attempt) FROM outbox.jobs") == len(taken)
            books_are_right(conn)

        one, two, three = claiming(table.first), claiming(table.second), claiming(table.worker())
        return Scene({"one": one, "two": two, "three": three}, check)

    played = explore(scene)
    assert {sum(map(len, each.outcomes.values())) for each in played} == {3}, "nothing is left lying"


def test_a_sweep_a_claim_and_a_late_completion(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        actors = {"sweep": table.sweep, "claim": table.claim_again, "late": table.finish}

        def check(outcomes: dict[str, Any]) -> None:
            table.check(outcomes)
            assert "freed" in outcomes["sweep"] or not outcomes["claim"]
            assert not (outcomes["claim"] and outcomes["late"])

        return Scene({name: holding(act) for name, act in actors.items()}, check)

    played = explore(scene)
    assert {tuple(map(bool, each.outcomes.values())) for each in played} == {
        (True, False, False), (True, True, False), (False, False, True),
    }  # fmt: skip


def test_a_claim_that_stores_an_in_progress_status_a_change_by_hand_and_a_sweep(conn: Conn, explore: Explore) -> None:
    pipeline = one_stage(lambda run: None, running="WORKING")
    pipeline.allow("WORKING", to="MOVED")
    deployed(conn, pipeline)

    def scene() -> Scene:
        table = Table(conn, pipeline)
        conn.execute(*commit.release([table.job]))

        def begin(conn: Conn) -> list[str]:
            jobs = table.claimed(conn, table.first)
            return ["moved"] if jobs and conn.execute(*claim.start(jobs)).fetchall() else []

        def move(conn: Conn) -> list[str]:
            sql = (
                "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE current_status IN ('NEW', 'WORKING')"
            )
            return ["moved"] * conn.execute(sql).rowcount

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert outcomes["hand"] == ["moved"]
            assert value(conn, "SELECT current_status FROM outbox.workflow_states") == "MOVED"
            assert value(conn, "SELECT count(*) FROM outbox.state_changes WHERE workflow_id = %s", table.id) == (
                2 + len(outcomes["worker"])
            )

        return Scene({"worker": begin, "hand": holding(move), "sweep": table.sweep}, check)

    played = explore(scene)
    assert {tuple(each.outcomes["worker"]) for each in played} == {(), ("moved",)}


def test_a_promotion_a_change_by_hand_and_a_claim(conn: Conn, explore: Explore) -> None:
    """K8 and all around it: a scheduled job becomes ready, or its workflow goes elsewhere."""
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        conn.execute(*commit.fail([(table.job, Failed("later", 60.0))]))
        conn.execute("UPDATE outbox.jobs SET run_at = now()")

        def promote(conn: Conn) -> list[str]:
            row = conn.execute(MAINTENANCE["jobs_promote_due"], {"limit": 10, "now": None, **ALL}).fetchone()
            return ["promoted"] * row[0] if row else []

        def check(outcomes: dict[str, Any]) -> None:
            table.check(outcomes)
            assert outcomes["hand"] == ["moved"]
            assert outcomes["promote"] or not outcomes["claim"]

        actors = {"promote": promote, "hand": table.by_hand, "claim": table.claim_again}
        return Scene({name: holding(act) for name, act in actors.items()}, check)

    played = explore(scene)
    assert {tuple(map(bool, each.outcomes.values())) for each in played} >= {(True, True, True), (False, True, False)}


@pytest.mark.parametrize("third", ["by_hand", "delete"])
def test_the_same_entity_submitted_twice_at_once_is_one_workflow(conn: Conn, explore: Explore, third: str) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        if third == "by_hand":
            table.delete(conn)

        def start(conn: Conn) -> bool:
            return pipeline.submit(conn, "e", Post()).created

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            there = value(conn, "SELECT count(*) FROM outbox.workflow_states")
            created = outcomes["one"] + outcomes["two"]
            assert there == 1 if third == "by_hand" else there == 1 - len(outcomes["third"]) + created
            assert created == 1 if third == "by_hand" else created <= 1

        one, two, three = holding(start), holding(start), holding(getattr(table, third))
        return Scene({"one": one, "two": two, "third": three}, check)

    played = explore(scene)
    assert {each.outcomes["one"] for each in played} == {True, False}


def test_bulk_submits_in_opposite_order_of_one_another(
    conn: Conn, explore: Explore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F25: new entities may meet crosswise, and one of the two is told to try again; known ones never do."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    monkeypatch.setattr(submit, "BATCH", 1)  # each entity is a step
    names = ["a", "b"]
    deadlock = psycopg.errors.DeadlockDetected

    def scene(known: bool, *may_raise: type[Exception]) -> Scene:
        Table(conn, pipeline)
        if known:
            pipeline.submit_many(conn, [(name, Post()) for name in names])

        def submitting(names: list[str]) -> Actor:
            items = [(name, Post()) for name in names]
            return Actor(holding(lambda conn: pipeline.submit_many(conn, items)), steps="INSERT|COMMIT")

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            started = [n for n in outcomes.values() if isinstance(n, int)]
            assert sum(started) == (0 if known else 2)
            assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == 3

        return Scene({"there": submitting(names), "back": submitting(names[::-1])}, check, may_raise)

    assert not any(each.waited for each in explore(lambda: scene(True)))
    played = explore(lambda: scene(False, deadlock))
    crossed = [each for each in played if any(isinstance(n, deadlock) for n in each.outcomes.values())]
    assert {frozenset(each.schedule.split()[:2]) for each in crossed} == {frozenset({"there", "back"})}


def test_a_retry_and_a_submit_of_a_workflow_that_is_dead(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        table.die(conn)

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert outcomes["submit"] is False, "it is there, dead or not"
            assert len(outcomes["retry"] + outcomes["again"]) == 1
            assert value(conn, "SELECT attempt FROM outbox.jobs") == 0

        submit = holding(lambda conn: pipeline.submit(conn, "e", Post()).created)
        # The turn that retries share with each other is no step: none of these takes it alone.
        retry = Actor(holding(table.retry), "outbox.retry|COMMIT")
        return Scene({"retry": retry, "again": retry, "submit": submit}, check)

    played = explore(scene)
    assert {bool(each.outcomes["retry"]) for each in played} == {True, False}
    assert any(each.waited for each in played)


def retaining(name: str) -> Act:
    """Have an act of retention of everything that it finds."""

    def retain(conn: Conn) -> int:
        with conn.transaction():
            conn.execute("SELECT set_config('outbox.retention', 'on', true)")
            row = conn.execute(MAINTENANCE[name], {"days": -1, "limit": 10, **ALL}).fetchone()
        return row[0] if row else 0

    return retain


def test_retention_a_submit_and_a_change_by_hand_of_a_workflow_that_has_ended(conn: Conn, explore: Explore) -> None:
    """It goes with its history, or stays with it; who submits it while it goes is not lost."""
    pipeline = one_stage(lambda run: None)
    pipeline.allow("MOVED", to="DONE")
    deployed(conn, pipeline)

    def scene() -> Scene:
        table = Table(conn, pipeline)
        table.by_hand(conn)

        def end(conn: Conn) -> int:
            return conn.execute(
                "UPDATE outbox.workflow_states SET current_status = 'DONE' WHERE current_status = 'MOVED'"
            ).rowcount

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            there = value(conn, "SELECT count(*) FROM outbox.workflow_states")
            assert there == 1 - outcomes["retention"] + outcomes["submit"]
            assert outcomes["end"] == 1
            left = value(conn, "SELECT count(*) FROM outbox.state_changes WHERE workflow_id = %s", table.id)
            assert left == (0 if outcomes["retention"] else 3), "its history goes with it, and not before"

        submit = holding(lambda conn: int(pipeline.submit(conn, "e", Post()).created))
        return Scene({"end": holding(end), "retention": retaining("retention_workflows"), "submit": submit}, check)

    played = explore(scene)
    seen = {(each.outcomes["retention"], each.outcomes["submit"]) for each in played}
    assert seen == {(0, 0), (1, 0), (1, 1)}


def test_retention_a_retry_and_a_change_by_hand_of_a_dead_job(conn: Conn, explore: Explore) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Table(conn, pipeline)
        table.die(conn)

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert outcomes["hand"] == ["moved"]
            assert value(conn, "SELECT count(*) FROM outbox.dead_jobs") == 0

        actors = {"retention": retaining("retention_dead_jobs"), "retry": table.retry, "hand": table.by_hand}
        return Scene({name: act if name == "retention" else holding(act) for name, act in actors.items()}, check)

    played = explore(scene)
    assert {(each.outcomes["retention"], bool(each.outcomes["retry"])) for each in played} == {
        (0, False), (0, True), (1, False), (1, True),
    }  # fmt: skip


# Deploys: while routes change, nobody moves by the old ones, and every job is of the stage that takes its status now.


@pytest.mark.parametrize(
    "act", ["finish", "fail", "die", "give_back", "by_hand", "claim_again", "retry", "delete", "sweep"]
)
def test_a_deploy_and_what_is_done_to_a_job(conn: Conn, explore: Explore, act: str) -> None:
    old = one_stage(lambda run: None)

    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        table = Table(conn, deployed(conn, old))
        if act == "retry":
            table.die(conn)
        elif act == "claim_again":
            table.give_back(conn)
        return Scene({"deploy": deploying(version("better")), act: holding(getattr(table, act))}, check)

    def check(outcomes: dict[str, Any]) -> None:
        books_are_right(conn)
        assert "status NEW: (taken by work) -> (taken by better)" in outcomes["deploy"]

    played = explore(scene)
    assert any("deploy" in each.waited for each in played) or act == "give_back"


def test_a_deploy_a_change_by_hand_and_a_claim(conn: Conn, explore: Explore) -> None:
    old = one_stage(lambda run: None)

    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        table = Table(conn, deployed(conn, old))
        conn.execute(*commit.release([table.job]))

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert outcomes["hand"] == ["moved"]

        acts = {"hand": holding(table.by_hand), "claim": holding(table.claim_again)}
        # The steps that the two may both meet; the test above has all of a deploy's, with one of them.
        steps = "LOCK TABLE|UPDATE outbox.jobs|COMMIT"
        return Scene({"deploy": Actor(deploying(version("better")).act, steps), **acts}, check)

    played = explore(scene)
    assert {bool(each.outcomes["claim"]) for each in played} == {True, False}


def test_a_deploy_and_a_submit(conn: Conn, explore: Explore) -> None:
    old = one_stage(lambda run: None)

    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        Table(conn, deployed(conn, old))
        submit = holding(lambda conn: old.submit(conn, "f", Post()).created)
        return Scene({"deploy": deploying(version("better")), "submit": submit}, check)

    def check(outcomes: dict[str, Any]) -> None:
        books_are_right(conn)
        assert outcomes["submit"] is True
        assert {row[0] for row in conn.execute("SELECT stage FROM outbox.jobs")} == {"better"}

    played = explore(scene)
    assert any("deploy" in each.waited for each in played)
    assert any("submit" in each.waited for each in played)


def test_two_deploys_of_different_versions(conn: Conn, explore: Explore) -> None:
    """One after the other: what is there in the end is one version, whole."""
    old = one_stage(lambda run: None)

    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        Table(conn, deployed(conn, old))

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert deploy.check(conn, version("better")) == [] or deploy.check(conn, version("")) == []

        return Scene({"better": deploying(version("better")), "parked": deploying(version(""))}, check)

    played = explore(scene)
    assert {each.schedule.split()[-1] for each in played} == {"better", "parked"}
    assert all(each.waited or len({*each.schedule.split()[:4]}) == 1 for each in played)


def clock(cron: str) -> Pipeline[Any]:
    """Return a pipeline whose schedule submits a workflow, with every tick due."""
    pipeline: Pipeline[Any] = Pipeline("clock", data=Post, initial="NEW", final={"DONE"})
    pipeline.stage("work", on="NEW", to="DONE")(lambda run: None)

    @pipeline.every(cron, name="look")
    def look(tick: Tick) -> None:
        pipeline.submit(tick.connection, f"{tick.at.year}", Post())

    return pipeline


@pytest.mark.parametrize("several", [False, True])
def test_a_deploy_beside_a_tick_of_a_schedule_that_it_changes(conn: Conn, explore: Explore, several: bool) -> None:
    """A tick that comes to submit must not meet a deploy that holds the table and waits for the tick."""
    yearly, hourly = clock("0 0 1 1 *"), clock("0 * * * *")
    deployed(conn, one_stage(lambda run: None))

    def deploying(conn: Conn) -> Any:
        return outbox.deploy(conn, [version("better"), hourly]) if several else deploy.deploy(conn, hourly)

    def tick(conn: Conn) -> Any:
        return user_transaction.run(conn, scheduler.ticking(conn, yearly.schedules["look"]))

    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        deployed(conn, one_stage(lambda run: None))
        deployed(conn, yearly)
        conn.execute("UPDATE outbox.schedules SET next_at = '2020-01-01Z'")
        return Scene({"deploy": Actor(deploying, steps="LOCK TABLE|FOR UPDATE|COMMIT"), "tick": tick}, check)

    def check(outcomes: dict[str, Any]) -> None:
        ran = outcomes["tick"] is not None
        assert value(conn, "SELECT count(*) FROM outbox.workflow_states") == ran
        cron, soon = conn.execute("SELECT cron, next_at < now() + interval '2 hours' FROM outbox.schedules").fetchall()[
            0
        ]
        assert (cron, soon) == ("0 * * * *", True), "whatever an old worker says of the next tick"

    played = explore(scene)
    assert {each.outcomes["tick"] is not None for each in played} == {True, False}


def test_a_job_of_a_stage_that_a_deploy_took_away_is_swept_and_holds_up_no_others(conn: Conn) -> None:
    """Somebody has made it by hand, say; an older worker took it."""
    table = Table(conn, deployed(conn, one_stage(lambda run: None)))
    conn.execute("DELETE FROM outbox.stages")
    assert table.sweep(conn) == ["freed"]


def test_f04_an_attempt_does_not_count_for_the_job_that_two_deploys_put_in_its_place(conn: Conn) -> None:
    """The same worker, workflow, version and attempt: only the job is another."""
    table = Table(conn, deployed(conn, one_stage(lambda run: None)))
    deployed(conn, version(""))
    deployed(conn, table.pipeline)
    (again,) = table.claimed(conn, table.first)
    assert (again.attempt, again.version, again.entered) == (table.job.attempt, table.job.version, table.job.entered)
    for act in (table.finish, table.fail, table.die, table.give_back):
        assert act(conn) == [], "what is claimed now is not touched"
    table.job = again
    assert table.finish(conn) == ["moved", "sent"]
