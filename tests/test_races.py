"""F04: everything that can meet at a claimed job, two at a time, in both orders, on two connections: one wins.

The first acts in an open transaction, the second begins and (mostly) waits for it, the first commits or rolls back.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest
from pipelines import Post, deployed, value
from servers import wait_for
from test_worker import one_stage

from outbox import Pipeline, claim, commit, statements
from outbox.job import Failed, Finished, Job, Message
from outbox.lane import Lane

Conn = psycopg.Connection[Any]


class Table:
    """A job claimed by worker 1, beside a second worker, and what may be done to it. Actions return what they won."""

    def __init__(self, conn: Conn, entity: str) -> None:
        self.pipeline = deployed(conn, one_stage(lambda run: None))
        self.entity = entity
        self.pipeline.submit(conn, entity, Post())
        self.first, self.second = self._worker(conn), self._worker(conn)
        self.job = self._claim(conn, self.first)[0]

    def _worker(self, conn: Conn) -> int:
        row = conn.execute(
            "INSERT INTO outbox.workers (name, stages, lease) VALUES ('test', '{}', '1 hour') RETURNING id"
        ).fetchone()
        assert row is not None
        return int(row[0])

    def _claim(self, conn: Conn, worker: int) -> list[Job]:
        lane = Lane(self.pipeline.stages["work"], 10)
        statement, params = claim.request(worker, [(lane, 1)], 0, careful=True)
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
        return ["freed"] if conn.execute(*commit.give_back([self.job])).fetchall() else []

    def by_hand(self, conn: Conn) -> list[str]:
        moved = conn.execute(
            "UPDATE outbox.workflow_states SET current_status = 'MOVED' WHERE entity_id = %s AND current_status = 'NEW'",
            [self.entity],
        )
        return ["moved"] if moved.rowcount else []

    def edit(self, conn: Conn) -> list[str]:
        conn.execute(
            'UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE entity_id = %s',
            [self.entity],
        )
        return ["edited"]

    def sweep(self, conn: Conn) -> list[str]:
        conn.execute("DELETE FROM outbox.workers WHERE id = %s", [self.first])
        row = conn.execute(statements.load("maintenance")["jobs_sweep"], {"limit": 100}).fetchone()
        return ["freed"] if row and row[0] else []

    def claim_again(self, conn: Conn) -> list[str]:
        return ["claimed"] if self._claim(conn, self.second) else []

    def delete(self, conn: Conn) -> list[str]:
        deleted = conn.execute("DELETE FROM outbox.workflow_states WHERE entity_id = %s", [self.entity])
        return ["deleted"] if deleted.rowcount else []


ACTIONS = ["finish", "fail", "die", "give_back", "by_hand", "edit", "sweep", "claim_again", "delete"]


@pytest.mark.parametrize("first", ACTIONS)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_f04_of_two_that_meet_at_a_job_exactly_one_wins(
    conn: Conn, connect: Callable[..., Conn], first: str, end: str
) -> None:
    for number, second in enumerate(ACTIONS):
        table = Table(conn, f"e{number}")
        one, two = connect(autocommit=False), connect()
        won = {first: getattr(table, first)(one)}
        meet(conn, one, two, partial(getattr(table, second), two), end, out := [])
        if end == "rollback":
            won[first] = []
        label = f"{first} ({won[first]}) {end}, then {second} ({out})"
        assert not isinstance(out[0], BaseException), label
        check(conn, table, [*won[first], *out[0]], label)
        conn.execute("DELETE FROM outbox.workflow_states")
        conn.execute("DELETE FROM outbox.workers")
        one.close()
        two.close()


def meet(conn: Conn, one: Conn, two: Conn, act: Callable[[], Any], end: str, out: list[Any]) -> None:
    """Let `act` run against the open transaction `one`; end that as soon as `act` waits for it or is done."""

    def run() -> None:
        try:
            out.append(act())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(
        lambda: (
            out
            or value(
                conn,
                "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s",
                two.info.backend_pid,
            )
        ),
        what="the second action waits or is done",
    )
    getattr(one, end)()
    thread.join(20)
    assert out, "the second action never came back"


def check(conn: Conn, table: Table, won: list[str], label: str) -> None:
    """The database says the same as those who won, and nobody won what excludes another."""
    assert won.count("moved") + won.count("deleted") <= 2, label
    assert won.count("moved") <= 1, label
    sent = value(conn, "SELECT count(*) FROM outbox.messages WHERE workflow_id = %s", table.job.workflow_id)
    assert sent == won.count("sent"), label
    history = conn.execute(
        "SELECT from_status, to_status, version FROM outbox.state_changes WHERE workflow_id = %s ORDER BY version",
        [table.job.workflow_id],
    ).fetchall()
    assert len(history) == 1 + won.count("moved"), label
    workflow = conn.execute(
        "SELECT current_status FROM outbox.workflow_states WHERE entity_id = %s", [table.entity]
    ).fetchone()
    live = value(conn, "SELECT count(*) FROM outbox.jobs WHERE workflow_id = %s", table.job.workflow_id)
    dead = value(conn, "SELECT count(*) FROM outbox.dead_jobs WHERE workflow_id = %s", table.job.workflow_id)
    if workflow is None:
        assert "deleted" in won, label
        assert (live, dead) == (0, 0), label
        return
    assert workflow[0] == history[-1][1], label
    assert (live + dead == 1) == (workflow[0] == "NEW"), f"{label}: {live} live, {dead} dead in {workflow[0]}"
    assert dead == (won.count("died") if workflow[0] == "NEW" else 0), f"{label}: a change by hand answers the dead job"
    assert value(conn, "SELECT sum(workflows)::int FROM outbox.status_counts WHERE status = %s", workflow[0]) >= 1, (
        label
    )


def test_opposite_orders_of_a_bulk_update_and_a_batch_do_not_deadlock(conn: Conn, connect: Callable[..., Conn]) -> None:
    """F25: the batch locks in the order of ids; whoever updates in id order too never meets it crosswise."""
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(50)))
    row = conn.execute(
        "INSERT INTO outbox.workers (name, stages, lease) VALUES ('t', '{}', '1h') RETURNING id"
    ).fetchone()
    assert row is not None
    lane = Lane(pipeline.stages["work"], 100)
    statement, params = claim.request(row[0], [(lane, 50)], 0, careful=True)
    claim.receive(row[0], {("p", "work"): lane}, conn.execute(statement, params).fetchall())
    jobs = [(job, Finished("DONE", None, [])) for job in reversed(lane.waiting)]
    one, two = connect(autocommit=False), connect()
    ids = sorted(job.workflow_id for job, _ in jobs)
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[10]])
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(two.execute(*commit.finish(jobs)).fetchall()))
    thread.start()
    wait_for(
        lambda: value(
            conn, "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", two.info.backend_pid
        )
    )
    one.execute('UPDATE outbox.workflow_states SET metadata = \'{"content": "x"}\' WHERE id = %s', [ids[20]])
    one.commit()
    thread.join(20)
    assert len(out[0]) == 48, "the two that were edited are refused, the others commit"


def test_two_workers_never_claim_the_same_job(conn: Conn, connect: Callable[..., Conn]) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    pipeline.submit_many(conn, ((f"e{n}", Post()) for n in range(1000)))
    got: list[list[str]] = []

    def work(conn: Conn) -> None:
        row = conn.execute(
            "INSERT INTO outbox.workers (name, stages, lease) VALUES ('t', '{}', '1h') RETURNING id"
        ).fetchone()
        assert row is not None
        mine: list[str] = []
        while True:
            lane = Lane(pipeline.stages["work"], 100)
            statement, params = claim.request(row[0], [(lane, 7)], 0, careful=True)
            claim.receive(row[0], {("p", "work"): lane}, conn.execute(statement, params).fetchall())
            if not lane.waiting:
                break
            assert len(lane.waiting) <= 7
            mine += [job.workflow_id for job in lane.waiting]
        got.append(mine)

    threads = [threading.Thread(target=work, args=[connect()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    everything = list(itertools.chain(*got))
    assert len(everything) == len(set(everything)) == 1000


def test_the_same_entity_submitted_twice_at_once_is_one_workflow(conn: Conn, connect: Callable[..., Conn]) -> None:
    pipeline = deployed(conn, one_stage(lambda run: None))
    one, two = connect(autocommit=False), connect()
    assert pipeline.submit(one, "a", Post()).created
    meet(conn, one, two, lambda: pipeline.submit(two, "a", Post()), "commit", out := [])
    assert not out[0].created
    assert value(conn, "SELECT count(*) FROM outbox.jobs") == 1


def test_jobs_that_may_kill_their_worker_are_claimed_one_at_a_time_over_all_stages(conn: Conn) -> None:
    posts = deployed(conn)
    posts.submit_many(conn, [(f"e{n}", Post()) for n in range(4)])
    conn.execute("UPDATE outbox.workflow_states SET current_status = 'ENRICHED' WHERE entity_id IN ('e0', 'e1')")
    conn.execute("UPDATE outbox.jobs SET careful = true, attempt = 3")
    conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('test', '{}', '1 hour')")
    lanes = [(Lane(stage, 10), 10) for stage in posts.stages.values()]
    stages = set()
    for _ in range(4):
        rows = conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall()
        assert [row[6] for row in rows] == [True], "one, whatever there is"
        stages.add(rows[0][1])
        assert conn.execute(*claim.request(1, lanes, 0, careful=False)).fetchall() == [], "none beside it"
    assert stages == {"enrich", "decide"}
    assert conn.execute(*claim.request(1, lanes, 0, careful=True)).fetchall() == []


def test_a_job_of_a_stage_that_a_deploy_took_away_is_swept_and_holds_up_no_others(conn: Conn) -> None:
    """A retry that ran beside the deploy may have made it; an older worker took it."""
    table = Table(conn, "a")
    conn.execute("DELETE FROM outbox.stages")
    assert table.sweep(conn) == ["freed"]


def test_f04_an_attempt_does_not_count_for_the_job_that_two_deploys_put_in_its_place(conn: Conn) -> None:
    """The same worker, workflow, version and attempt: only the job is another."""
    table = Table(conn, "a")
    parked: Pipeline[Any] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    parked.allow("NEW", to={"DONE", "MOVED"})
    deployed(conn, parked)
    deployed(conn, table.pipeline)
    (anew,) = table._claim(conn, table.first)
    assert (anew.attempt, anew.version, anew.entered) == (table.job.attempt, table.job.version, table.job.entered)
    for act in (table.finish, table.fail, table.die, table.give_back):
        assert act(conn) == [], "what is claimed now is not touched"
    table.job = anew
    assert table.finish(conn) == ["moved", "sent"]
