"""Several questions, votes and links at one workflow, in every order of their steps: each counts once, and the last moves it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import combinations_with_replacement
from typing import Any

import psycopg
import pytest

from kit.interleave import Explore, Scene, ScheduleFailed
from kit.pipelines import deployed, value
from kit.scenes import MAINTENANCE, Act, books_are_right
from kit.waits import HOUR, Order, orders
from outbox import Pipeline, Question, WaitForApproval
from outbox.engine.apart import ALL

Conn = psycopg.Connection[Any]
OPTIONS = {"approve": "PAID", "reject": "REFUSED"}
LATE = {"deadline": HOUR, "on_deadline": "LATE"}
VOTED = WaitForApproval("Pay?", options=OPTIONS, approvers={"law": 2}, **LATE)
SEVERAL = WaitForApproval(
    questions=[Question("Law?", options=OPTIONS, name="law"), Question("Money?", options=OPTIONS, name="money")],
    first={"reject"},
    **LATE,
)
# The others are told, and a higher isolation level refuses what it can't see.
TOLD = {"OB011", "OB012", "OB013", "OB020", "OB022", "OB024", "40001"}


class Asked:
    """A workflow that waits, and whose deadline has passed. Acts return what they achieved."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Order], wait: WaitForApproval[Order]) -> None:
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute(MAINTENANCE["counts_fold"], {})
        self.conn = conn
        self.id = pipeline.submit(conn, "e", Order()).id
        with conn.transaction():
            told = json.dumps([{**wait.as_wait(), "id": str(self.id)}])
            conn.execute("SELECT set_config('outbox.waits', %s, true)", [told])
            conn.execute("UPDATE outbox.workflow_states SET current_status = 'WAITING'")
        conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 second'")
        self.ids = dict(conn.execute("SELECT coalesce(name, 'all'), id FROM outbox.approvals").fetchall())
        self.link = value(
            conn,
            "SELECT outbox.approval_link('orders', 'e', 'cid', now() + interval '1 day', %s, '{law}')",
            self.ids[min(self.ids)],
        )

    def said(self, conn: Conn, statement: str, *params: Any) -> list[str]:
        try:
            with conn.transaction():
                row = conn.execute(statement.encode(), params).fetchone()
                return [str(row[0])] if row else []
        except psycopg.Error as error:
            if error.sqlstate not in TOLD:
                raise
            return []

    def vote(self, conn: Conn, by: str, decision: str = "approve") -> list[str]:
        return self.said(conn, "SELECT outbox.decide('orders', 'e', %s, %s, groups => '{law}')", decision, by)

    def ann(self, conn: Conn) -> list[str]:
        return self.vote(conn, "ann")

    def ben(self, conn: Conn) -> list[str]:
        return self.vote(conn, "ben")

    def rejects(self, conn: Conn) -> list[str]:
        return self.vote(conn, "dan", "reject")

    def answer(self, conn: Conn, name: str, decision: str = "approve") -> list[str]:
        return self.said(
            conn, "SELECT outbox.decide('orders', 'e', %s, %s, question => %s)", decision, name, self.ids[name]
        )

    def law(self, conn: Conn) -> list[str]:
        return self.answer(conn, "law")

    def money(self, conn: Conn) -> list[str]:
        return self.answer(conn, "money")

    def no_money(self, conn: Conn) -> list[str]:
        return self.answer(conn, "money", "reject")

    def by_link(self, conn: Conn) -> list[str]:
        return self.said(conn, "SELECT outbox.link_use(%s, 'approve')", self.link)

    def no_by_link(self, conn: Conn) -> list[str]:
        return self.said(conn, "SELECT outbox.link_use(%s, 'reject')", self.link)

    def by_hand(self, conn: Conn) -> list[str]:
        return self.said(
            conn,
            "UPDATE outbox.workflow_states SET current_status = 'PAID' WHERE current_status = 'WAITING' RETURNING current_status",
        )

    def fire(self, conn: Conn) -> list[str]:
        ((_, moved),) = conn.execute(MAINTENANCE["deadlines_fire"], {"limit": 10, "now": None, **ALL}).fetchall()
        return ["LATE"] * moved

    def delete(self, conn: Conn) -> list[str]:
        return ["deleted"] * conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 'e'").rowcount

    def status(self) -> str | None:
        status: str | None = value(self.conn, "SELECT current_status FROM outbox.workflow_states")
        return status


def check(table: Asked, outcomes: dict[str, Any]) -> None:
    """Checks that the workflow has moved at most once, and only as questions, votes and links say."""
    books_are_right(table.conn)
    won = [what for each in outcomes.values() for what in each]
    if "deleted" in won:
        left = "SELECT count(*) FROM outbox.approvals AS a FULL JOIN outbox.approval_votes AS v ON v.approval_id = a.id"
        assert value(table.conn, left) == value(table.conn, "SELECT count(*) FROM outbox.approval_links") == 0
        return
    moves = "SELECT count(*) FROM outbox.state_changes AS c WHERE c.workflow_id = %s AND c.from_status = 'WAITING'"
    status = table.status()
    assert value(table.conn, moves, table.id) == (status != "WAITING") <= 1
    assert {what for what in won if what != "WAITING"} <= {status}
    # Each vote belongs to one who was told that it counts, and is counted.
    counted = dict(table.conn.execute("SELECT option, count(*) FROM outbox.approval_votes GROUP BY 1").fetchall())
    needed = value(table.conn, "SELECT max((approvers ->> 'law')::int) FROM outbox.approvals")
    if needed:
        decided = status in OPTIONS.values()
        assert decided == (max(counted.values(), default=0) == needed), "exactly the quorum decides"
        assert sum(counted.values()) == value(table.conn, "SELECT votes FROM outbox.approvals")
    else:
        open_ = value(table.conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL")
        assert (open_ == 0) == (status != "WAITING"), "it waits for what is open, and for nothing else"
    links = "SELECT count(*) FROM outbox.approval_links WHERE used_at IS NOT NULL"
    told = [what for name, each in outcomes.items() if "link" in name for what in each]
    assert value(table.conn, links) == bool(told)
    assert not (outcomes.get("by_link.1") and outcomes.get("no_by_link.2")), "a link gives one answer"


def at(level: str, act: Act, end: str) -> Act:
    """Runs an act in a transaction of this isolation level, so that others meet it before its end."""

    def held(conn: Conn) -> Any:
        with conn.transaction(force_rollback=end == "rollback"):
            conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
            done = act(conn)
        return done if end == "commit" else []

    return held


def play(
    conn: Conn, explore: Explore, wait: WaitForApproval[Order], pairs: Iterable[tuple[str, str]],
    ends: tuple[str, str] = ("commit", "commit"), level: str = "read committed",
) -> None:  # fmt: skip
    pipeline = deployed(conn, orders(wait))
    for first, second in pairs:

        def scene(first: str = first, second: str = second) -> Scene:
            table = Asked(conn, pipeline, wait)
            one, two = (at(level, getattr(table, act), end) for act, end in zip((first, second), ends, strict=True))
            return Scene({f"{first}.1": one, f"{second}.2": two}, lambda outcomes: check(table, outcomes))

        explore(scene)


VOTES = ["ann", "ben", "rejects", "by_link", "by_hand", "fire", "delete"]
ANSWERS = ["law", "money", "no_money", "by_hand", "fire"]
SAME = {(act, act) for act in VOTES + ANSWERS if act not in ("ann", "by_link", "law")}


def test_of_votes_at_once_exactly_the_quorum_counts(conn: Conn, explore: Explore) -> None:
    play(conn, explore, VOTED, [pair for pair in combinations_with_replacement(VOTES, 2) if pair not in SAME])
    play(conn, explore, VOTED, [("by_link", "no_by_link")])


def test_of_answers_at_once_the_last_moves_the_workflow(conn: Conn, explore: Explore) -> None:
    play(conn, explore, SEVERAL, [pair for pair in combinations_with_replacement(ANSWERS, 2) if pair not in SAME])


@pytest.mark.parametrize("ends", [("rollback", "commit"), ("commit", "rollback")])
def test_what_is_rolled_back_does_not_count(conn: Conn, explore: Explore, ends: tuple[str, str]) -> None:
    play(conn, explore, VOTED, [("ann", "ann"), ("ann", "ben"), ("by_link", "by_link")], ends)
    play(conn, explore, SEVERAL, [("law", "money")], ends)


LEVEL = "repeatable read"


def test_a_higher_isolation_level_misses_no_vote_and_no_answer(conn: Conn, explore: Explore) -> None:
    play(conn, explore, VOTED, [("ann", "ann"), ("ann", "ben"), ("by_link", "by_link")], level=LEVEL)
    play(conn, explore, SEVERAL, [("law", "money"), ("law", "no_money")], level=LEVEL)


def test_the_last_vote_and_the_last_answer_move_it_in_any_order(conn: Conn, explore: Explore) -> None:
    """One vote is there already, and one question is answered."""
    pipeline = deployed(conn, orders(VOTED))
    for acts in (("ben", "by_link"), ("ben", "ben"), ("ben", "rejects")):

        def scene(acts: tuple[str, str] = acts) -> Scene:
            table = Asked(conn, pipeline, VOTED)
            assert table.ann(conn) == ["WAITING"]
            one, two = (at("read committed", getattr(table, act), "commit") for act in acts)

            def moved(outcomes: dict[str, Any]) -> None:
                check(table, outcomes)
                assert table.status() == "PAID", "the second vote has decided, and the third is too late"

            return Scene({f"{acts[0]}.1": one, f"{acts[1]}.2": two}, moved)

        explore(scene)


@pytest.mark.parametrize(
    ("function", "old", "new", "wait", "pair", "level"),
    [
        pytest.param("quorum_reached", "(SELECT count(*) FROM voters", "(SELECT 2 * count(*) FROM voters", VOTED, ("ann", "ben"), "read committed", id="a vote that counts twice"),
        pytest.param("workflow_locked", "workflow_locked.entity_id FOR NO KEY UPDATE", "workflow_locked.entity_id", VOTED, ("ann", "ben"), "read committed", id="votes without the workflow's lock"),
        pytest.param("decide", "SET metadata = coalesce(decide.edit, w.metadata) WHERE w.id = workflow.id", "SET metadata = w.metadata WHERE false", SEVERAL, ("law", "money"), LEVEL, id="an answer that a snapshot does not see"),
        pytest.param("approvals_end", "IF engine IS NULL THEN", "IF false THEN", VOTED, ("ann", "by_hand"), "read committed", id="a change by hand that makes up for votes"),
        pytest.param("link_use", "WHEN used.decision <> link_use.decision THEN 'used'", "", VOTED, ("by_link", "no_by_link"), "read committed", id="a link that is used twice"),
    ],
)  # fmt: skip
def test_a_broken_count_is_found(
    conn: Conn, explore: Explore, function: str, old: str, new: str, wait: WaitForApproval[Order], pair: tuple[str, str], level: str
) -> None:  # fmt: skip
    (text,) = conn.execute("SELECT pg_get_functiondef(%s::regproc)", [f"outbox.{function}"]).fetchone() or ("",)
    assert old in text
    conn.execute(text.replace(old, new).encode())
    with pytest.raises(ScheduleFailed):
        play(conn, explore, wait, [pair], level=level)
