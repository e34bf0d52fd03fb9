"""F73: what may end a wait, or begin it, meets in every order of its steps: one wins, and the others are told.

See kit/scenes.py, whose books these are, too, and kit/interleave.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

import psycopg
import pytest

from kit.interleave import Explore, Scene, ScheduleFailed
from kit.pipelines import deployed, value
from kit.scenes import MAINTENANCE, Table, books_are_right, holding
from kit.waits import PAYMENT, TIMED, Order, Task, families, orders
from outbox import Pipeline, WaitForApproval, WaitForChildren, WaitForSignal, decide, signal
from outbox.database import user_transaction
from outbox.engine import claim, commit, transaction
from outbox.engine.apart import ALL
from outbox.engine.job import Finished, Job
from outbox.engine.lane import Lane
from outbox.operations import look

Conn = psycopg.Connection[Any]
ENDS = [("commit", "commit"), ("rollback", "commit"), ("commit", "rollback")]


class Waiting(Table):
    """A workflow whose stage has been claimed and ends in a wait. Acts return where they moved it."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any], wait: WaitForApproval[Any] | WaitForSignal[Any]) -> None:
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        conn.execute(MAINTENANCE["counts_fold"], {})
        self.conn, self.pipeline = conn, pipeline
        self.id = pipeline.submit(conn, "e", Order()).id
        self.first = self.worker()
        self.lane = Lane(pipeline.stages["ask"], 10)
        statement, params = claim.request(self.first, [(self.lane, 1)], 0, careful=True)
        claim.receive(self.first, {("orders", "ask"): self.lane}, conn.execute(statement, params).fetchall())
        (self.job,) = self.lane.waiting
        self.wait = wait.as_wait()

    def begun(self) -> Waiting:
        """The wait has begun, and its deadline has passed."""
        assert self.begin(self.conn)
        self.conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 second'")
        return self

    def begin(self, conn: Conn) -> list[str]:
        outcome = Finished("WAITING", None, [], self.wait)
        return ["WAITING"] if conn.execute(*commit.finish([(self.job, outcome)])).fetchall() else []

    def approve(self, conn: Conn, by: str = "sarah") -> list[str]:
        return self.decided(conn, "approve", by)

    def reject(self, conn: Conn) -> list[str]:
        return self.decided(conn, "reject", "tom")

    def decided(self, conn: Conn, decision: str, by: str) -> list[str]:
        try:
            with conn.transaction():
                return [decide(conn, self.pipeline, "e", decision, by=by)]
        except psycopg.Error as error:
            if error.sqlstate not in ("OB011", "OB012", "OB013"):
                raise
            return []

    def fire(self, conn: Conn) -> list[str]:
        ((_, moved),) = conn.execute(MAINTENANCE["deadlines_fire"], {"limit": 10, "now": None, **ALL}).fetchall()
        return ["LATE"] * moved

    def send(self, conn: Conn) -> list[str]:
        try:
            with conn.transaction():
                signal(conn, self.pipeline, "e", "payment", {"sum": 1})
                return ["sent"]
        except psycopg.Error as error:
            if error.sqlstate != "OB011":
                raise
            return []

    def by_hand(self, conn: Conn) -> list[str]:
        update = "UPDATE outbox.workflow_states SET current_status = 'REFUSED' WHERE current_status = 'WAITING'"
        return ["REFUSED"] * conn.execute(update).rowcount


def decided_once(table: Waiting, outcomes: dict[str, Any]) -> None:
    """One has moved it, history and the answer say who, and nothing is left of the wait."""
    books_are_right(table.conn)
    won = [what for each in outcomes.values() for what in each]
    changes = table.conn.execute(
        "SELECT to_status, actor FROM outbox.state_changes WHERE workflow_id = %s AND version > 2", (table.id,)
    ).fetchall()
    if "deleted" in won:
        return
    moves = [what for what in won if what in ("PAID", "REFUSED", "LATE")]
    # The same answer by the same person once more is no second one.
    assert len(changes) == len(set(moves)) <= 1
    ended = table.conn.execute(
        "SELECT to_status, decided_by FROM outbox.approvals WHERE ended_at IS NOT NULL"
    ).fetchall()
    assert ended == changes


ACTS = ["approve", "reject", "fire", "by_hand", "delete"]


@pytest.mark.parametrize("ends", ENDS)
def test_f73_of_two_that_end_a_wait_exactly_one_wins(conn: Conn, explore: Explore, ends: tuple[str, str]) -> None:
    pipeline = deployed(conn, orders(None))
    for first, second in combinations_with_replacement(ACTS, 2):

        def scene(first: str = first, second: str = second) -> Scene:
            table = Waiting(conn, pipeline, TIMED).begun()
            one, two = holding(getattr(table, first), ends[0]), holding(getattr(table, second), ends[1])

            def check(outcomes: dict[str, Any]) -> None:
                decided_once(table, outcomes)
                if ends == ("commit", "commit"):
                    assert outcomes[f"{first}.1"] or outcomes[f"{second}.2"], "somebody has won"

            return Scene({f"{first}.1": one, f"{second}.2": two}, check)

        explore(scene)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("other", ["begin", "fire", "by_hand", "delete", "send"])
def test_a_signal_meets_what_begins_or_ends_the_wait_for_it(
    conn: Conn, explore: Explore, other: str, ends: tuple[str, str]
) -> None:
    pipeline = deployed(conn, orders(None))

    def scene() -> Scene:
        table = Waiting(conn, pipeline, PAYMENT)
        if other != "begin":
            table.begun()

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            sent, met = outcomes["send.1"], outcomes[f"{other}.2"]
            status = value(conn, "SELECT current_status FROM outbox.workflow_states WHERE id = %s", table.id)
            taken = value(conn, "SELECT count(*) FROM outbox.signals WHERE taken_at IS NOT NULL")
            assert taken == (status == "PAID")
            if other in ("begin", "send") and sent and met:
                assert status == "PAID", "whichever came first"
            if not sent:
                assert status != "PAID" or other == "send"

        sending, meeting = holding(table.send, ends[0]), holding(getattr(table, other), ends[1])
        return Scene({"send.1": sending, f"{other}.2": meeting}, check)

    explore(scene)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_handlers_transaction_that_begins_a_wait_sees_the_signal_or_fails(
    conn: Conn, explore: Explore, isolation: str
) -> None:
    """A handler may raise the isolation level of its transaction: its wait must not begin past a signal."""

    def ask(run: Any) -> WaitForSignal[Any]:
        run.connection.execute("SELECT count(*) FROM outbox.signals")
        return PAYMENT

    pipeline: Pipeline[Order] = orders(None)
    asking: Pipeline[Order] = Pipeline("orders", data=Order, initial="NEW")
    asking.stage("ask", on="NEW", to="WAITING", transaction=True)(ask)
    asking.allow("WAITING", to={"PAID", "LATE"})
    deployed(conn, pipeline)

    def scene() -> Scene:
        table = Waiting(conn, asking, PAYMENT)

        def run(other: Conn) -> list[str]:
            other.execute(f"SET default_transaction_isolation = '{isolation}'".encode())
            ended = user_transaction.run(other, transaction.attempt(other, [table.job]))
            other.execute("RESET default_transaction_isolation")
            return ["WAITING"] if isinstance(ended, transaction.Committed) else []

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            status = value(conn, "SELECT current_status FROM outbox.workflow_states")
            assert status == ("PAID" if outcomes["worker"] else "NEW")
            assert outcomes["worker"] or isolation == "repeatable read"

        return Scene({"worker": run, "sender": holding(table.send)}, check)

    explore(scene)


def test_two_people_who_answer_are_both_told(conn: Conn, connect: Callable[..., Conn]) -> None:
    pipeline = deployed(conn, orders(None))
    table = Waiting(conn, pipeline, TIMED).begun()
    assert table.approve(conn) == ["PAID"]
    with pytest.raises(psycopg.Error, match="too late, it was decided: approve by sarah at"):
        decide(connect(), pipeline, "e", "reject", by="tom")
    assert look.approvals(conn) == []


class Family:
    """A parent and two children that are at work, each held by a worker. Acts return what they did."""

    def __init__(self, conn: Conn, *, waits: bool) -> None:
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        conn.execute(MAINTENANCE["counts_fold"], {})
        self.conn, self.parents, self.tasks = conn, *families(lambda run: None, None)
        self.worker = Table.worker(self)  # type: ignore[arg-type]
        self.parents.submit(conn, "p", Task())
        (self.parent,) = self.claimed(self.parents, "split")
        children = [{"pipeline": "tasks", "entity": f"t{n}", "data": "{}", "cancel": "CANCELLED"} for n in (1, 2)]
        self.wait = WaitForChildren(to="MERGED").as_wait()
        if waits:
            self.finish(conn, self.parent, "WAITING", {**self.wait, "spawn": children})
        else:
            # Spawned by an earlier step: the parent is at work in another stage now, and is yet to wait.
            spawn = "SELECT outbox.waits_begin(%s::jsonb, ARRAY[%s::uuid])"
            conn.execute(
                spawn, (json.dumps([{"id": self.parent.workflow_id, "spawn": children}]), self.parent.workflow_id)
            )
        self.first, self.second = self.claimed(self.tasks, "work")

    def claimed(self, pipeline: Pipeline[Any], stage: str) -> list[Job]:
        lane = Lane(pipeline.stages[stage], 10)
        statement, params = claim.request(self.worker, [(lane, 10)], 0, careful=True)
        claim.receive(self.worker, {(pipeline.name, stage): lane}, self.conn.execute(statement, params).fetchall())
        return list(lane.waiting)

    def finish(self, conn: Conn, job: Job, status: str, wait: Any = None) -> list[str]:
        return [status] if conn.execute(*commit.finish([(job, Finished(status, None, [], wait))])).fetchall() else []

    def first_ends(self, conn: Conn) -> list[str]:
        return self.finish(conn, self.first, "DONE")

    def second_ends(self, conn: Conn) -> list[str]:
        return self.finish(conn, self.second, "DONE")

    def begin(self, conn: Conn) -> list[str]:
        return self.finish(conn, self.parent, "WAITING", self.wait)

    def cancel(self, conn: Conn) -> list[str]:
        update = "UPDATE outbox.workflow_states SET current_status = 'CANCELLED' WHERE entity_id = 'p'"
        try:
            with conn.transaction():
                return ["CANCELLED"] * conn.execute(update).rowcount
        except psycopg.Error as error:
            if error.sqlstate != "OB001":
                raise
            return []

    def delete(self, conn: Conn) -> list[str]:
        return ["deleted"] * conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 't2'").rowcount

    def check(self, outcomes: dict[str, Any]) -> None:
        books_are_right(self.conn)
        trail = self.conn.execute(
            "SELECT to_status FROM outbox.state_changes WHERE workflow_id = %s ORDER BY version",
            (self.parent.workflow_id,),
        ).fetchall()
        done = [what for each in outcomes.values() for what in each]
        ended = done.count("DONE") + done.count("deleted")
        assert ended <= 2
        if "CANCELLED" in done:
            assert trail[-1] == ("CANCELLED",)
        elif ended == 2 and ("begin" not in outcomes or outcomes["begin"]):
            assert trail == [("NEW",), ("WAITING",), ("MERGED",)]
        else:
            assert ("MERGED",) not in trail


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(
    "acts",
    [("first_ends", "second_ends"), ("first_ends", "second_ends", "cancel"), ("first_ends", "delete"),
     ("begin", "first_ends"), ("begin", "first_ends", "second_ends")],
)  # fmt: skip
def test_the_last_children_at_once_move_the_parent_once(
    conn: Conn, explore: Explore, acts: tuple[str, ...], ends: tuple[str, str]
) -> None:
    parents, tasks = families(lambda run: None, None)
    deployed(conn, tasks)
    deployed(conn, parents)

    def scene() -> Scene:
        family = Family(conn, waits="begin" not in acts)
        how = dict(zip(acts, (*ends, "commit"), strict=False))
        actors = {name: holding(getattr(family, name), how[name]) for name in acts}
        return Scene(actors, family.check)

    explore(scene)


BOTH = ("commit", "commit")


def mutate(conn: Conn, function: str, old: str, new: str) -> None:
    """Replace text in a function of this test's database."""
    row = conn.execute("SELECT pg_get_functiondef(%s::regproc)", (f"outbox.{function}",)).fetchone()
    assert row is not None
    assert old in row[0], f"{function} has no {old!r}"
    conn.execute(row[0].replace(old, new).encode())


@pytest.mark.parametrize(
    ("function", "old", "new", "race"),
    [
        pytest.param(
            "workflow_locked", "workflow_locked.entity_id FOR NO KEY UPDATE", "workflow_locked.entity_id",
            lambda conn, explore: test_f73_of_two_that_end_a_wait_exactly_one_wins(conn, explore, BOTH), id="a decision without the workflow's lock",
        ),
        pytest.param(
            "signals_begin", "IF waiting IS NOT NULL", "IF false",
            lambda conn, explore: test_a_signal_meets_what_begins_or_ends_the_wait_for_it(conn, explore, "begin", BOTH), id="a wait that takes no signal which is there",
        ),
        pytest.param(
            "signal_take", "PERFORM outbox.signals_take(ARRAY[NEW.workflow_id]);", "",
            lambda conn, explore: test_a_signal_meets_what_begins_or_ends_the_wait_for_it(conn, explore, "begin", BOTH), id="a signal that moves nobody",
        ),
        pytest.param(
            "signal_receive", "UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = NEW.workflow_id;", "",
            lambda conn, explore: test_a_handlers_transaction_that_begins_a_wait_sees_the_signal_or_fails(conn, explore, "repeatable read"), id="a signal that a snapshot does not see",
        ),
        pytest.param(
            "children_end", "WHERE w.id = parent.id FOR NO KEY UPDATE", "WHERE w.id = parent.id",
            lambda conn, explore: test_the_last_children_at_once_move_the_parent_once(conn, explore, ("begin", "first_ends", "second_ends"), BOTH),
            id="children that don't lock their parent",
        ),
    ],
)  # fmt: skip
def test_a_broken_wait_is_found(
    conn: Conn, explore: Explore, function: str, old: str, new: str, race: Callable[[Conn, Explore], None]
) -> None:
    mutate(conn, function, old, new)
    with pytest.raises(ScheduleFailed):
        race(conn, explore)
