"""What asks about an effect, and what answers, meets all else that may happen to the job, in every order of the steps.

A question is open if, and only if, its job is parked: whatever was first, no job waits for an answer that nobody is asked
for, and nobody is asked for what no job waits for.
"""

from __future__ import annotations

import uuid
from itertools import combinations_with_replacement
from typing import Any

import psycopg
import pytest

from kit.interleave import Explore, Scene
from kit.pipelines import deployed, one_stage, value
from kit.scenes import Table, books_are_right, holding
from outbox import Pipeline, decide
from outbox.definition.effect import Ask, Asked
from outbox.engine import effects
from outbox.engine.job import Trouble

Conn = psycopg.Connection[Any]
ENDS = [("commit", "commit"), ("rollback", "commit"), ("commit", "rollback")]


class Unknown(Table):
    """A claimed job with an effect of which only the intention is known."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any]) -> None:
        conn.execute("DELETE FROM outbox.approvals")
        super().__init__(conn, pipeline)
        self.call = str(uuid.uuid4())
        work = {"id": self.job.workflow_id, "entered": self.job.entered, "name": "charge", "stage": "work"}
        fence = {"job": self.job.id, "worker": self.job.owner, "attempt": self.job.attempt}
        self.intention = {**work, **fence, "function": "f", "call": self.call, "repeat": False}
        conn.execute(effects.SQL["effect_intend"], self.intention)

    def asked(self) -> Unknown:
        assert self.ask(self.conn) == ["asked"]
        return self

    def ask(self, conn: Conn) -> list[str]:
        trouble = Trouble("unknown", asked=(Asked("charge", self.call, Ask()),))
        ((asked,),) = conn.execute(*effects.ask(self.job, trouble)).fetchall()
        return ["asked"] if asked else []

    def note(self, conn: Conn) -> list[str]:
        what = {"state": "done", "result": "1", "error": None, "known_by": "call", "blob": None}
        ((noted, _),) = conn.execute(effects.SQL["effect_note"], {**self.intention, **what}).fetchall()
        return ["noted"] if noted else []

    def yes(self, conn: Conn) -> list[str]:
        return self.answer(conn, "yes", "ann")

    def no(self, conn: Conn) -> list[str]:
        return self.answer(conn, "no", "eva")

    def answer(self, conn: Conn, decision: str, by: str) -> list[str]:
        try:
            with conn.transaction():
                decide(conn, self.pipeline, "e", decision, by=by)
        except psycopg.Error as error:
            if error.sqlstate not in ("OB011", "OB012", "OB013"):
                raise
            return []
        return [decision]

    def check_question(self) -> None:
        books_are_right(self.conn)
        asked = value(self.conn, "SELECT count(*) FROM outbox.approvals WHERE ended_at IS NULL")
        parked = value(self.conn, "SELECT count(*) FROM outbox.jobs WHERE due IS NULL")
        assert asked == parked
        assert value(self.conn, "SELECT count(*) FROM outbox.jobs WHERE due IS NULL AND owner IS NOT NULL") == 0


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(
    "other", ["ask", "note", "by_hand", "edit", "sweep", "retry", "delete", "fail", "die", "finish", "give_back"]
)
def test_a_question_about_an_effect_meets_what_may_happen_to_its_job(
    conn: Conn, explore: Explore, other: str, ends: tuple[str, str]
) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))

    def scene() -> Scene:
        table = Unknown(conn, pipeline)
        acts = {"ask.1": holding(table.ask, ends[0]), f"{other}.2": holding(getattr(table, other), ends[1])}
        return Scene(acts, lambda outcomes: table.check_question())

    explore(scene)


@pytest.mark.parametrize("ends", ENDS)
def test_of_two_that_end_a_question_about_an_effect_one_wins(
    conn: Conn, explore: Explore, ends: tuple[str, str]
) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    for first, second in combinations_with_replacement(["yes", "no", "by_hand", "edit", "retry", "delete"], 2):

        def scene(first: str = first, second: str = second) -> Scene:
            table = Unknown(conn, pipeline).asked()
            one, two = holding(getattr(table, first), ends[0]), holding(getattr(table, second), ends[1])

            def check(outcomes: dict[str, Any]) -> None:
                table.check_question()
                answers = {what for each in outcomes.values() for what in each if what in ("yes", "no")}
                assert len(answers) <= 1, "the same answer by the same person is no second one"
                state = value(conn, "SELECT state FROM outbox.effects")
                if state is not None:  # it was not deleted
                    assert state == ({"yes": "done", "no": "not done"}[answers.pop()] if answers else "started")

            return Scene({f"{first}.1": one, f"{second}.2": two}, check)

        explore(scene)
