"""F04 for handlers that share a transaction: what meets one of them harms no other, in any order of the steps.

Each scene has two jobs of one worker, whose handlers take turns. What was rolled back together is tried alone, as the
worker does it. In the end what a handler wrote is there exactly if it was the handler that moved its workflow.
"""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kit.interleave import Actor, Explore, Scene
from kit.pipelines import Post, deployed, one_stage, value
from kit.scenes import MAINTENANCE, Act, Table, books_are_right, deploying, holding, version
from outbox import Pipeline, Run
from outbox.database import session, user_transaction
from outbox.engine import transaction
from outbox.engine.apart import ALL
from outbox.engine.job import Job

Conn = psycopg.Connection[Any]
WRITE = "INSERT INTO outbox.witness (workflow, attempt) VALUES (%s, %s)"

STEPS = "outbox.witness|published AS"
"""The steps of handlers that matter to others: what they write, and their end."""


def work(run: Run[Any]) -> None:
    run.connection.execute(WRITE, (run.workflow_id, run.attempt))


@pytest.fixture
def pipeline(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> Pipeline[Any]:
    # No time passes: a wait for a lock lasts until it is free, and no transaction is too long.
    monkeypatch.setattr(transaction, "LONGEST", 60.0)
    monkeypatch.setattr(transaction, "LOCK_WAIT", 3600.0)
    conn.execute("CREATE TABLE outbox.witness (workflow uuid, attempt integer)")
    return one_stage(work, transaction=True, share=5)


class Pair(Table):
    """Two jobs that worker 1 holds, of entities e and f. What others do is done to f, whose turn is the second one."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any]) -> None:
        super().__init__(conn, pipeline)
        conn.execute("DELETE FROM outbox.witness")
        self.other = pipeline.submit(conn, "f", Post()).id
        (self.also,) = self.claimed(conn, self.first)

    def take_turns(self, conn: Conn) -> dict[str, str]:
        """Calls both handlers; returns how each has ended. What was rolled back together is tried alone."""
        ended: dict[str, str] = {}
        for jobs, how in self._turns(conn, [self.job, self.also]):
            ended |= {job.entity_id: type(how).__name__ for job in jobs}
        return ended

    def _turns(self, conn: Conn, jobs: list[Job]) -> list[tuple[list[Job], transaction.Ended]]:
        took = user_transaction.run(conn, transaction.take_turns(conn, jobs, session.clean("handler")))
        assert took.left == []
        assert (took.odd, took.conflict) == ("", False)
        ended: list[tuple[list[Job], transaction.Ended]] = []
        for some, how in took.ended:
            if isinstance(how, transaction.RolledBackTogether):
                ended += [([job], user_transaction.run(conn, transaction.attempt(conn, [job]))) for job in some]
            else:
                ended.append((some, how))
        return ended

    def cancel(self, conn: Conn) -> bool:
        return self.pipeline.move(conn, "f", "MOVED", by="sarah", reason="changed") == "MOVED"

    def touch(self, conn: Conn) -> bool:
        return self._changed(conn, 'UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\'')

    def remove(self, conn: Conn) -> bool:
        return self._changed(conn, "DELETE FROM outbox.workflow_states")

    def _changed(self, conn: Conn, statement: str) -> bool:
        where = " WHERE entity_id = 'f' AND current_status = 'NEW'"
        return conn.execute((statement + where).encode()).rowcount == 1

    def lose(self, conn: Conn) -> bool:
        """Takes the lease, and with it both jobs."""
        conn.execute(MAINTENANCE["workers_bury"], {"dead": [self.first], "leases": False, "now": None})
        return (conn.execute(MAINTENANCE["jobs_sweep"], {"limit": 100, **ALL}).fetchone() or (0,))[0] > 0

    def lose_one(self, conn: Conn) -> bool:
        """Takes f's job, and has another worker take it."""
        sql = "UPDATE outbox.jobs SET owner = %s, attempt = attempt + 1 WHERE workflow_id = %s AND owner = %s"
        return conn.execute(sql, (self.second, self.other, self.first)).rowcount == 1

    def check(self, outcomes: dict[str, Any]) -> None:
        books_are_right(self.conn)
        worker = outcomes["worker"]
        moved = self.rows("SELECT workflow_id, attempt FROM outbox.state_changes WHERE to_status = 'DONE'")
        assert self.rows("SELECT workflow, attempt FROM outbox.witness") == moved, "each with its handler's change"
        done = [{"e": self.id, "f": self.other}[entity] for entity, how in worker.items() if how == "Committed"]
        assert [id_ for id_, _ in moved] == sorted(done)
        assert set(worker.values()) <= {"Committed", "NotHeld"}

    def rows(self, query: str) -> list[Any]:
        ids = [self.id, self.other]
        return sorted(row for row in self.conn.execute(query.encode()).fetchall() if row[0] in ids)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("act", ["cancel", "touch", "remove", "lose_one"])
def test_what_happens_to_one_job_costs_only_that_one(
    conn: Conn, explore: Explore, pipeline: Pipeline[Any], act: str, end: str
) -> None:
    deployed(conn, pipeline)

    def scene() -> Scene:
        pair = Pair(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            pair.check(outcomes)
            refused = isinstance(outcomes["other"], psycopg.Error)
            assert outcomes["worker"]["e"] == "Committed"
            assert (outcomes["worker"]["f"] == "NotHeld") == (outcomes["other"] is True and end == "commit")
            assert not refused or outcomes["other"].sqlstate == "OB001", "it is done, and can't be cancelled"

        other: Act = holding(getattr(pair, act), end)
        return Scene({"worker": pair.take_turns, "other": other}, check, may_raise=(psycopg.DatabaseError,))

    played = explore(scene)
    lost = {each.outcomes["worker"]["f"] for each in played}
    assert lost == ({"Committed", "NotHeld"} if end == "commit" else {"Committed"})


def test_a_lease_that_is_taken_away_takes_both_or_none(conn: Conn, explore: Explore, pipeline: Pipeline[Any]) -> None:
    deployed(conn, pipeline)

    def scene() -> Scene:
        pair = Pair(conn, pipeline)

        def check(outcomes: dict[str, Any]) -> None:
            pair.check(outcomes)
            assert set(outcomes["worker"].values()) == {"NotHeld" if outcomes["sweep"] else "Committed"}
            for job in pair.claimed(conn, pair.second):
                assert isinstance(user_transaction.run(conn, transaction.attempt(conn, [job])), transaction.Committed)
            assert value(conn, "SELECT count(*) FROM outbox.witness") == 2, "each once, by whom it may be"

        return Scene({"worker": Actor(pair.take_turns, STEPS), "sweep": holding(pair.lose)}, check)

    played = explore(scene)
    assert {each.outcomes["sweep"] for each in played} == {True, False}


def test_a_deploy_takes_the_jobs_that_are_not_done(conn: Conn, explore: Explore, pipeline: Pipeline[Any]) -> None:
    def scene() -> Scene:
        conn.execute("DELETE FROM outbox.workflow_states")
        pair = Pair(conn, deployed(conn, pipeline))

        def check(outcomes: dict[str, Any]) -> None:
            pair.check(outcomes)
            left = [entity for entity, how in outcomes["worker"].items() if how == "NotHeld"]
            stages = conn.execute("SELECT stage FROM outbox.jobs").fetchall()
            assert stages == [("better",)] * len(left)

        # The steps of a deploy that handlers may meet; test_jobs.py has all of them, with one job.
        deploy = Actor(deploying(version("better")).act, "LOCK TABLE|UPDATE outbox.jobs|COMMIT")
        return Scene({"worker": Actor(pair.take_turns, STEPS), "deploy": deploy}, check)

    played = explore(scene)
    kinds = {frozenset(each.outcomes["worker"].values()) for each in played}
    assert {frozenset({"Committed"}), frozenset({"NotHeld"})} <= kinds


def test_two_workers_that_write_the_same_row_end_one_after_the_other(
    conn: Conn, explore: Explore, pipeline: Pipeline[Any]
) -> None:
    """The second one waits for the common COMMIT of the first, and both are whole."""
    conn.execute("CREATE TABLE outbox.hot (n integer)")
    conn.execute("INSERT INTO outbox.hot VALUES (0)")

    def count(run: Run[Any]) -> None:
        run.connection.execute("UPDATE outbox.hot SET n = n + 1")
        work(run)

    hot = deployed(conn, one_stage(count, transaction=True, share=5))

    def scene() -> Scene:
        pair = Pair(conn, hot)
        conn.execute("UPDATE outbox.hot SET n = 0")
        hot.submit_many(conn, [("g", Post()), ("h", Post())])
        theirs = pair.claimed(conn, pair.second)

        def others(conn: Conn) -> dict[str, str]:
            return {job.entity_id: type(how).__name__ for jobs, how in pair._turns(conn, theirs) for job in jobs}

        def check(outcomes: dict[str, Any]) -> None:
            books_are_right(conn)
            assert {how for each in outcomes.values() for how in each.values()} == {"Committed"}
            assert value(conn, "SELECT n FROM outbox.hot") == value(conn, "SELECT count(*) FROM outbox.witness") == 4

        steps = "outbox.hot|published AS"
        return Scene({"worker": Actor(pair.take_turns, steps), "other": Actor(others, steps)}, check)

    played = explore(scene)
    assert {frozenset(each.waited) for each in played} >= {frozenset({"worker"}), frozenset({"other"})}
