"""A deploy that takes over or renames, and a cancellation, meet what else is done to a waiting workflow, in every order.

Each is done before or after the other, whole: nobody meets them in a deadlock, and no question is answered twice. See
kit/interleave.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from kit.interleave import Actor, Explore, Scene
from kit.pipelines import Post, deployed, value
from kit.scenes import MAINTENANCE, Table, books_are_right, holding
from kit.waits import TIMED
from outbox import Pipeline, decide
from outbox.definition import deploy
from outbox.engine import commit
from outbox.engine.apart import ALL
from outbox.engine.job import Finished

Conn = psycopg.Connection[Any]
STEPS = "LOCK TABLE|COMMIT"
REFUSED = {"OB001", "OB003", "OB011", "OB012", "OB013"}


def version(review: str = "WAITING", *, judged: bool = False) -> Pipeline[Any]:
    """NEW -> WAITING -> PAID, LATE or CANCELLED: reviewed under this name, by a person or by a stage."""
    pipeline: Pipeline[Any] = Pipeline(
        "p", data=Post, initial="NEW", final={"PAID", "REFUSED", "LATE"}, cancelled="CANCELLED"
    )
    pipeline.stage("work", on="NEW", to=review)(lambda run: None)
    pipeline.allow(review, to={"PAID", "REFUSED", "LATE"})
    if review != "WAITING":
        pipeline.rename("WAITING", review)
    if judged:
        pipeline.stage("judge", on=review, to="PAID")(lambda run: None)
        pipeline.take_over(review)
    return pipeline


class Waiting(Table):
    """A workflow that waits for an answer, or is about to. Acts return where they moved it; what is refused moves nothing."""

    def __init__(self, conn: Conn, *, begun: bool) -> None:
        conn.execute("DELETE FROM outbox.workflow_states")
        super().__init__(conn, deployed(conn, version()))
        if begun:
            assert self.begin(conn)
            conn.execute("UPDATE outbox.jobs SET deadline = now() - interval '1 second'")

    def begin(self, conn: Conn) -> list[str]:
        outcome = Finished("WAITING", None, [], TIMED.as_wait())
        return self._moving(
            conn, lambda: ["WAITING"] * len(conn.execute(*commit.finish([(self.job, outcome)])).fetchall())
        )

    def approve(self, conn: Conn) -> list[str]:
        return self._moving(conn, lambda: [decide(conn, "p", "e", "approve", by="sarah")])

    def look_and_approve(self, conn: Conn) -> list[str]:
        """Locks the row first, as an application does that shows it and then decides."""
        conn.execute("SELECT FROM outbox.workflow_states WHERE entity_id = 'e' FOR NO KEY UPDATE")
        return self.approve(conn)

    def cancel(self, conn: Conn) -> list[str]:
        return self._moving(conn, lambda: [version().cancel(conn, "e", by="tom")])

    def fire(self, conn: Conn) -> list[str]:
        ((_, moved),) = conn.execute(MAINTENANCE["deadlines_fire"], {"limit": 10, "now": None, **ALL}).fetchall()
        return ["LATE"] * moved

    def by_hand(self, conn: Conn) -> list[str]:
        update = "UPDATE outbox.workflow_states SET current_status = 'REFUSED' WHERE current_status = 'WAITING'"
        return self._moving(conn, lambda: ["REFUSED"] * conn.execute(update).rowcount)

    def _moving(self, conn: Conn, act: Callable[[], list[str]]) -> list[str]:
        try:
            with conn.transaction():
                return act()
        except psycopg.Error as error:
            if error.sqlstate not in REFUSED:
                raise
            return []

    def status(self) -> str:
        return str(value(self.conn, "SELECT current_status FROM outbox.workflow_states"))

    def open_questions(self) -> list[Any]:
        return self.conn.execute(
            "SELECT status, options ->> 'approve' FROM outbox.approvals WHERE ended_at IS NULL"
        ).fetchall()


def deploying(pipeline: Pipeline[Any]) -> Actor:
    return Actor(lambda conn: deploy.deploy(conn, pipeline), steps=STEPS)


@pytest.mark.parametrize("act", ["begin", "approve", "fire", "by_hand", "cancel", "look_and_approve"])
def test_a_deploy_that_takes_over_and_what_ends_or_begins_the_wait(conn: Conn, explore: Explore, act: str) -> None:
    def scene() -> Scene:
        table = Waiting(conn, begun=act != "begin")

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            moved, status = outcomes[act], table.status()
            assert status == (moved[0] if moved else "WAITING" if act != "begin" else "NEW")
            if status == "WAITING":
                assert value(conn, "SELECT stage FROM outbox.jobs") == "judge"
            if act != "begin":
                assert table.open_questions() == []

        return Scene({"deploy": deploying(version(judged=True)), act: holding(getattr(table, act))}, check)

    played = explore(scene)
    assert {each.schedule.split()[-1] for each in played} == {"deploy", act}


@pytest.mark.parametrize("act", ["begin", "approve", "fire", "by_hand", "cancel", "look_and_approve"])
def test_a_deploy_that_renames_and_what_ends_or_begins_the_wait(conn: Conn, explore: Explore, act: str) -> None:
    def scene() -> Scene:
        table = Waiting(conn, begun=act != "begin")

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            moved, status = outcomes[act], table.status()
            ends = [where for where in moved if where != "WAITING"]
            assert status == (ends[0] if ends else "NEW" if act == "begin" and not moved else "REVIEW")
            assert table.open_questions() == ([("REVIEW", "PAID")] if status == "REVIEW" else [])
            if status == "REVIEW":
                assert value(conn, "SELECT status || on_deadline FROM outbox.jobs") == "REVIEWLATE"
                renamed = value(
                    conn,
                    "SELECT count(*) FROM outbox.state_changes WHERE reason = 'renamed' AND workflow_id = %s",
                    table.id,
                )
                assert renamed == 1

        return Scene({"deploy": deploying(version("REVIEW")), act: holding(getattr(table, act))}, check)

    explore(scene)


@pytest.mark.parametrize("act", ["begin", "approve", "fire", "by_hand", "cancel"])
def test_a_cancellation_and_what_else_moves_the_workflow(conn: Conn, explore: Explore, act: str) -> None:
    def scene() -> Scene:
        table = Waiting(conn, begun=act != "begin")

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            cancelled, moved = outcomes["cancel.1"], outcomes[f"{act}.2"]
            assert table.open_questions() == []
            if act in ("begin", "cancel"):
                assert cancelled == ["CANCELLED"], "it can be cancelled wherever it is"
            else:
                assert len(cancelled + moved) == 1, "one of them has ended it"
            assert table.status() == (cancelled or moved)[0]

        return Scene({"cancel.1": holding(table.cancel), f"{act}.2": holding(getattr(table, act))}, check)

    explore(scene)
