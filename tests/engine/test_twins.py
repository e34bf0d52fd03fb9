"""Each statement that takes a batch has a twin that names the rows: both take the same, whatever is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg
import pytest

from kit.pipelines import deployed
from outbox import Pipeline, Run
from outbox.database import statements

Conn = psycopg.Connection[Any]
SQL = {**statements.load("maintenance"), **statements.load("retention")}


class Pair(NamedTuple):
    """A statement, what names its rows, the ids of all that there are, and which columns say how many it took."""

    statement: str
    names: str
    all: str
    taken: tuple[int, ...] = (0,)


JOBS = "SELECT workflow_id::text FROM outbox.jobs"
WORKFLOWS = "SELECT id::text FROM outbox.workflow_states"
PAIRS = [
    Pair("jobs_promote_due", "jobs_to_promote", JOBS),
    Pair("deadlines_fire", "deadlines_to_fire", JOBS, (1,)),
    Pair("jobs_sweep", "jobs_to_sweep", JOBS, (0, 1)),
    Pair("parents_join", "parents_to_join", WORKFLOWS),
    Pair("orphans_cancel", "orphans_to_cancel", WORKFLOWS),
    Pair("approvals_remind", "approvals_to_remind", "SELECT id::text FROM outbox.approvals"),
    Pair("approvals_escalate", "approvals_to_escalate", "SELECT id::text FROM outbox.approvals"),
    Pair("retention_workflows", "workflows_to_delete", WORKFLOWS),
    Pair("retention_reactions", "reactions_to_delete", WORKFLOWS),
    Pair("retention_history", "history_to_delete", "SELECT id::text FROM outbox.state_changes"),
    Pair("retention_dead_jobs", "dead_jobs_to_drop", "SELECT workflow_id::text FROM outbox.dead_jobs"),
    Pair(
        "retention_checkpoints",
        "checkpoints_to_delete",
        "SELECT jsonb_build_array(workflow_id, entered, stage, key)::text FROM outbox.checkpoints",
    ),
    Pair(
        "retention_effects",
        "effects_to_delete",
        "SELECT jsonb_build_array(workflow_id, entered, name)::text FROM outbox.effects",
    ),
    Pair(
        "retention_rates",
        "rates_to_delete",
        "SELECT jsonb_build_array(pipeline, stage, partition)::text FROM outbox.partition_rates",
    ),
]

ROWS = """
    SELECT setseed(0.17);
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata, created_at, updated_at)
    SELECT CASE WHEN n % 4 = 0 THEN 'p/notify' ELSE 'p' END, 'e' || n,
           CASE WHEN n % 4 = 0 THEN (ARRAY['DUE', 'DONE'])[ceil(random() * 2)]
                ELSE (ARRAY['A', 'B', 'DONE', 'EXPIRED'])[ceil(random() * 4)] END,
           '{}', now(), now() - random() * interval '20 days'
    FROM generate_series(1, 60) AS n;
    INSERT INTO outbox.workers (name, stages, lease) VALUES ('w', '{}', '1 hour');
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, run_at, owner, claimed_at, attempt, due, deadline,
                             on_deadline)
    SELECT w.id, w.pipeline, CASE WHEN random() < 0.8 THEN 'work' END, w.current_status, 1,
           now() + (random() - 0.5) * interval '2 hours', o.owner, CASE WHEN o.owner IS NOT NULL THEN now() END,
           ceil(random() * 3), random() < 0.5, now() + (random() - 0.5) * interval '2 hours',
           (ARRAY['EXPIRED', 'NOWHERE'])[ceil(random() * 2)]
    FROM outbox.workflow_states AS w
    CROSS JOIN LATERAL (SELECT CASE WHEN random() < 0.5 AND w.id IS NOT NULL
                               THEN (ARRAY[(SELECT id FROM outbox.workers), 999])[ceil(random() * 2)] END AS owner) AS o
    WHERE random() < 0.8;
    INSERT INTO outbox.children (child_id, parent_id, cancel_to)
    SELECT c.id, (SELECT p.id FROM outbox.workflow_states AS p WHERE p.id <> c.id ORDER BY random() LIMIT 1),
           (ARRAY['EXPIRED', 'NOWHERE'])[ceil(random() * 2)]
    FROM outbox.workflow_states AS c WHERE random() < 0.5;
    INSERT INTO outbox.orphans (parent_id) SELECT DISTINCT parent_id FROM outbox.children WHERE random() < 0.5;
    INSERT INTO outbox.waits (workflow_id, to_status, children)
    SELECT id, 'EXPIRED', floor(random() * 4) - 1 FROM outbox.workflow_states WHERE random() < 0.5;
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, remind_every,
                                  remind_at, escalate_to, escalate_at, ended, ended_at)
    SELECT w.id, w.pipeline, w.entity_id, 'B', 1, '?', '', '{}', '1 h', now() + (random() - 0.5) * interval '2 hours', 'boss',
           now() + (random() - 0.5) * interval '2 hours', e.ended,
           CASE WHEN e.ended IS NOT NULL THEN now() END
    FROM outbox.workflow_states AS w
    CROSS JOIN LATERAL (SELECT CASE WHEN random() < 0.5 AND w.id IS NOT NULL THEN 'decided' END AS ended) AS e;
    INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, at)
    SELECT id, current_status, 1, 'a', now() - random() * interval '20 days' FROM outbox.workflow_states;
    INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error, died_at)
    SELECT w.id, w.pipeline, w.entity_id, 'work', w.current_status, ceil(random() * 2), 1,
           (ARRAY['no', 'dropped by retention'])[ceil(random() * 2)], now() - random() * interval '20 days'
    FROM outbox.workflow_states AS w WHERE random() < 0.5;
    INSERT INTO outbox.checkpoints (workflow_id, stage, entered, key, function, result, attempt, made_at)
    SELECT id, 'work', ceil(random() * 2), 'k "' || n, 'f', '1', 1, now() - random() * interval '20 days'
    FROM outbox.workflow_states CROSS JOIN generate_series(1, 2) AS n;
    INSERT INTO outbox.effects (workflow_id, entered, name, stage, function, call, attempt, started_at)
    SELECT id, ceil(random() * 2), 'k "' || n, 'work', 'f', outbox.uuid7(), 1, now() - random() * interval '20 days'
    FROM outbox.workflow_states CROSS JOIN generate_series(3, 4) AS n;
    INSERT INTO outbox.partition_rates (pipeline, stage, partition, next_at)
    SELECT 'p', 'work', 'x ' || n, now() - random() * interval '20 days' FROM generate_series(1, 20) AS n;
"""


@pytest.fixture
def rows(conn: Conn, admin_dsn: str) -> Iterator[Conn]:
    """Makes rows of all kinds, at random and without triggers: some that a statement takes, some that it must not."""
    pipeline: Pipeline[Any] = Pipeline("p", initial="A", final={"DONE", "EXPIRED"})
    pipeline.stage("work", on="A", to={"B", "DONE"})(lambda run: None)
    pipeline.allow("B", to={"DONE", "EXPIRED"})
    pipeline.allow("A", to="EXPIRED")

    @pipeline.on_change("B", name="notify")
    async def notify(run: Run[Any]) -> None: ...

    deployed(conn, pipeline)
    with psycopg.connect(admin_dsn) as admin:
        admin.execute("SET session_replication_role = replica")
        admin.execute(ROWS.encode())
        yield admin
        admin.rollback()


def taken(rows: Conn, pair: Pair, **which: Any) -> int:
    """Returns how many rows the statement takes, and undoes it."""
    with rows.transaction(force_rollback=True):
        (row,) = rows.execute(SQL[pair.statement], {**PARAMS, **which}).fetchall()
        return sum(row[column] for column in pair.taken)


PARAMS: dict[str, Any] = {"only": None, "but": [], "limit": 1000, "now": None, "days": 10.0}


def test_a_statement_takes_what_its_twin_names_and_nothing_else(rows: Conn) -> None:
    for pair in PAIRS:
        ids = {row[0] for row in rows.execute(pair.all.encode())}
        named = {row[0] for row in rows.execute(SQL[pair.names], PARAMS)}
        assert {each for each in ids if taken(rows, pair, only=[each])} == named, pair.statement
        assert taken(rows, pair) == len(named), pair.statement
        assert 0 < len(named) < len(ids), f"{pair.statement}: some are taken, and some are not"
        left = sorted(named)[::2]
        assert {row[0] for row in rows.execute(SQL[pair.names], {**PARAMS, "but": left})} == named - set(left)
        assert taken(rows, pair, but=left) == len(named) - len(left), pair.statement


def test_every_statement_that_takes_a_batch_is_compared() -> None:
    batches = {name for name, text in SQL.items() if b"%(but)s" in text}
    assert batches == {pair.statement for pair in PAIRS} | {pair.names for pair in PAIRS}
