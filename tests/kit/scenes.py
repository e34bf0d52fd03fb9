"""Defines what can be done to a job, as acts of an interleaving, and what must be true after every order of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from kit.interleave import Actor
from kit.pipelines import Post, value
from outbox import NoWorkflow, Pipeline, retry
from outbox.database import statements
from outbox.definition import deploy
from outbox.definition.run import Message
from outbox.engine import claim, commit
from outbox.engine.apart import ALL
from outbox.engine.job import Failed, Finished, Job
from outbox.engine.lane import Lane

Conn = psycopg.Connection[Any]
Act = Callable[[Conn], Any]
MAINTENANCE = {**statements.load("maintenance"), **statements.load("retention")}
WORKER = statements.load("lease")


def holding(act: Act, end: str = "commit") -> Act:
    """Runs an act in a transaction, so that others meet it before its end."""

    def held(conn: Conn) -> Any:
        with conn.transaction(force_rollback=end == "rollback"):
            done = act(conn)
        return done if end == "commit" else []

    return held


class Table:
    """A job claimed by worker 1, a second worker, and what may be done to the job. Acts return what they achieved."""

    def __init__(self, conn: Conn, pipeline: Pipeline[Any]) -> None:
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        conn.execute(MAINTENANCE["counts_fold"], {})
        self.conn, self.pipeline = conn, pipeline
        self.id = pipeline.submit(conn, "e", Post()).id
        self.first, self.second = self.worker(), self.worker()
        (self.job,) = self.claimed(conn, self.first)

    def worker(self) -> int:
        row = self.conn.execute(
            WORKER["worker_register"], {"name": "t", "stages": [], "lease": 3600, "release": None}
        ).fetchone()
        assert row is not None
        return int(row[0])

    def claimed(self, conn: Conn, worker: int, limit: int = 10) -> list[Job]:
        lane = Lane(self.pipeline.stages["work"], 10)
        statement, params = claim.request(worker, [(lane, limit)], 0, careful=True)
        claim.receive(worker, {("p", "work"): lane}, conn.execute(statement, params).fetchall())
        return list(lane.waiting)

    def finish(self, conn: Conn) -> list[str]:
        outcome = Finished("DONE", '{"content": "done"}', [Message("t", "k", "{}", None)])
        return ["moved", "sent"] if conn.execute(*commit.finish([(self.job, outcome)])).fetchall() else []

    def fail(self, conn: Conn) -> list[str]:
        return ["freed"] if conn.execute(*commit.fail([(self.job, Failed("boom", 0.0))])).fetchall() else []

    def die(self, conn: Conn) -> list[str]:
        return ["died"] if conn.execute(*commit.fail([(self.job, Failed("boom", None))])).fetchall() else []

    def give_back(self, conn: Conn) -> list[str]:
        return ["given back"] if conn.execute(*commit.release([self.job])).fetchall() else []

    def by_hand(self, conn: Conn) -> list[str]:
        moved = conn.execute(
            "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = 'e' AND current_status = 'NEW'"
        )
        return ["moved"] if moved.rowcount else []

    def edit(self, conn: Conn) -> list[str]:
        conn.execute("UPDATE outbox.workflow_states SET metadata = '{\"content\": \"x\"}' WHERE entity_id = 'e'")
        return ["edited"]

    def sweep(self, conn: Conn) -> list[str]:
        conn.execute(MAINTENANCE["workers_bury"], {"dead": [self.first], "leases": False, "now": None})
        freed, dead, _ = conn.execute(MAINTENANCE["jobs_sweep"], {"limit": 100, **ALL}).fetchone() or (0, 0, None)
        return ["freed"] * freed + ["died"] * dead

    def claim_again(self, conn: Conn) -> list[str]:
        return ["claimed"] * len(self.claimed(conn, self.second))

    def retry(self, conn: Conn) -> list[str]:
        try:
            return ["retried"] if retry(conn, "p", "e") else []
        except NoWorkflow:  # which has ended the transaction
            return []

    def delete(self, conn: Conn) -> list[str]:
        return ["deleted"] * conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = 'e'").rowcount

    def check(self, outcomes: dict[str, Any]) -> None:
        """Checks that the database agrees with what the acts returned, and that no two exclusive acts succeeded."""
        won = Counter(what for each in outcomes.values() if isinstance(each, list) for what in each)
        books_are_right(self.conn)
        assert won["moved"] <= 1
        sent = value(self.conn, "SELECT count(*) FROM outbox.messages WHERE workflow_id = %s", self.id)
        assert sent == won["sent"]
        history = value(self.conn, "SELECT count(*) FROM outbox.state_changes WHERE workflow_id = %s", self.id)
        assert history == 1 + won["moved"]
        status = value(self.conn, "SELECT current_status FROM outbox.workflow_states WHERE id = %s", self.id)
        assert (status is None) == (won["deleted"] > 0)
        if status == "NEW":
            dead = value(self.conn, "SELECT count(*) FROM outbox.dead_jobs")
            assert dead == won["died"] - won["retried"]
            attempt = value(self.conn, "SELECT attempt FROM outbox.jobs")
            assert attempt in (None, (0 if won["retried"] else 1) + won["claimed"] - won["given back"])


BOOKS = """
WITH history AS (
    SELECT c.workflow_id, c.from_status, c.to_status, lag(c.to_status) OVER same AS before,
           lead(c.version) OVER same IS NULL AS newest, w.current_status
    FROM outbox.workflow_states AS w LEFT JOIN outbox.state_changes AS c ON c.workflow_id = w.id
    WINDOW same AS (PARTITION BY c.workflow_id ORDER BY c.version)
), work AS (
    SELECT workflow_id, pipeline, stage, status FROM outbox.jobs WHERE stage IS NOT NULL
    UNION ALL SELECT workflow_id, pipeline, stage, status FROM outbox.dead_jobs
), standing AS (
    SELECT w.id, w.pipeline, w.current_status AS status, r.stage, r.status AS known
    FROM outbox.workflow_states AS w LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
)
SELECT 'the history has a gap' FROM history WHERE from_status IS DISTINCT FROM before
UNION ALL SELECT 'the history does not end at the status' FROM history WHERE newest AND to_status IS DISTINCT FROM current_status
UNION ALL SELECT 'a status that is unknown' FROM standing WHERE known IS NULL
UNION ALL SELECT format('%s jobs live or dead in status %s', (SELECT count(*) FROM work WHERE workflow_id = s.id), status)
FROM standing AS s WHERE (SELECT count(*) FROM work WHERE workflow_id = s.id) <> (s.stage IS NOT NULL)::integer
UNION ALL SELECT format('a job of stage %s in status %s, which is %s''s', j.stage, s.status, s.stage)
FROM work AS j LEFT JOIN standing AS s ON s.id = j.workflow_id WHERE (j.stage, j.status) IS DISTINCT FROM (s.stage, s.status)
UNION ALL SELECT format('%s are counted in %s, and %s are there', c.n, status, w.n)
FROM (SELECT pipeline, status, sum(workflows) AS n FROM outbox.status_counts GROUP BY pipeline, status) AS c
FULL JOIN (SELECT pipeline, status, count(*) AS n FROM standing GROUP BY pipeline, status) AS w USING (pipeline, status)
WHERE coalesce(c.n, 0) <> coalesce(w.n, 0)
UNION ALL SELECT format('a timeout of %s in status %s', j.status, s.status)
FROM outbox.jobs AS j LEFT JOIN standing AS s ON s.id = j.workflow_id
WHERE j.stage IS NULL AND (s.stage IS NOT NULL OR j.status IS DISTINCT FROM s.status)
UNION ALL SELECT format('a question of %s is open in status %s', a.status, s.status)
FROM outbox.approvals AS a LEFT JOIN standing AS s ON s.id = a.workflow_id
WHERE a.ended_at IS NULL AND a.status IS DISTINCT FROM s.status
UNION ALL SELECT format('a wait for %s in status %s, where stage %s works', w.signal, s.status, s.stage)
FROM outbox.waits AS w LEFT JOIN standing AS s ON s.id = w.workflow_id
WHERE s.id IS NULL OR s.stage IS NOT NULL
UNION ALL SELECT format('a signal %s is not taken', g.name)
FROM outbox.signals AS g JOIN outbox.waits AS w ON w.workflow_id = g.workflow_id AND w.signal = g.name WHERE g.taken_at IS NULL
"""


def books_are_right(conn: Conn) -> None:
    """Checks that histories have no gap, each stage's status has one job, live or dead, and the counts are true."""
    assert conn.execute(BOOKS).fetchall() == []


DEPLOY = "LOCK TABLE|outbox.routes AS r WHERE|outbox.jobs|COMMIT"


def version(stage: str) -> Pipeline[Any]:
    """Returns the pipeline with its only stage under another name, which takes another handler."""
    pipeline: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    if stage:
        pipeline.stage(stage, on="NEW", to="DONE")(lambda run: None)
    pipeline.allow("NEW", to={"MOVED", "DONE"})
    return pipeline


def deploying(pipeline: Pipeline[Any]) -> Actor:
    """Returns who deploys a pipeline, step by step."""
    return Actor(lambda conn: deploy.deploy(conn, pipeline), steps=DEPLOY)
