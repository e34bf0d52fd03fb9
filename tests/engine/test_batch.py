"""A stage with `batch`: a handler gets many workflows in one transaction, and none of them suffers for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from kit.pipelines import QUICK, Post, deployed, drain_all, first_out_of_time, status_of, value
from outbox import Go, Pipeline, Run

Conn = psycopg.Connection[Any]
Runs = list[Run[Post]]


@pytest.fixture
def effects(conn: Conn) -> Conn:
    conn.execute("CREATE TABLE outbox.witness (entity text, attempt int, xid xid8 DEFAULT pg_current_xact_id())")
    return conn


def batches(handler: Callable[..., Any], *, batch: int = 100, **options: Any) -> Pipeline[Post]:
    pipeline: Pipeline[Post] = Pipeline("p", data=Post, initial="NEW", final={"DONE"})
    options = {"to": "DONE", "retry": QUICK, "transaction": True, "batch": batch, **options}
    pipeline.stage("work", on="NEW", **options)(handler)
    pipeline.allow("NEW", to="MOVED")
    return pipeline


def run_all(conn: Conn, dsn: str, pipeline: Pipeline[Post], count: int) -> Any:
    deployed(conn, pipeline)
    pipeline.submit_many(conn, [(f"e{n}", Post(content=str(n))) for n in range(count)])
    return drain_all(conn, dsn, pipeline)


def write(run: Run[Post]) -> tuple[str, tuple[Any, ...]]:
    return "INSERT INTO outbox.witness VALUES (%s, %s)", (run.entity_id, run.attempt)


async def write_all(runs: Runs) -> None:
    for run in runs:
        await run.connection.execute(*write(run))


def entities(conn: Conn) -> set[str]:
    rows = [row[0] for row in conn.execute("SELECT entity FROM outbox.witness")]
    assert len(rows) == len(set(rows)), "an effect in the transaction happens once"
    return set(rows)


def test_many_workflows_share_a_transaction_each_with_its_own_change(effects: Conn, dsn: str) -> None:
    sizes: list[int] = []

    async def work(runs: Runs) -> None:
        sizes.append(len(runs))
        assert len({id(run.connection) for run in runs}) == 1
        await write_all(runs)
        for run in runs:
            run.publish("t", {"entity": run.entity_id})

    worker = run_all(effects, dsn, batches(work), 250)
    assert sum(sizes) == 250 == worker.counts.done
    assert max(sizes) == 100, "as many as it may get, where there are as many"
    assert entities(effects) == {f"e{n}" for n in range(250)}
    assert value(effects, "SELECT count(DISTINCT xid) FROM outbox.witness") == len(sizes)
    assert (
        value(
            effects,
            "SELECT count(*) FROM outbox.witness e JOIN outbox.workflow_states w ON w.entity_id = e.entity AND w.xmin = xid::xid "
            "JOIN outbox.state_changes c ON c.workflow_id = w.id AND c.xmin = w.xmin AND c.attempt = 1 AND c.stage = 'work' "
            "JOIN outbox.messages m ON m.workflow_id = w.id AND m.xmin = w.xmin WHERE w.current_status = 'DONE'",
        )
        == 250
    ), "effect, status, history and message are one commit"


def test_sync_handlers_get_batches_too(effects: Conn, dsn: str) -> None:
    def work(runs: Runs) -> None:
        for run in runs:
            run.connection.execute(*write(run))

    run_all(effects, dsn, batches(work), 30)
    assert len(entities(effects)) == 30
    assert value(effects, "SELECT count(DISTINCT xid) FROM outbox.witness") < 30


def test_each_run_has_a_result_of_its_own(conn: Conn, dsn: str) -> None:
    async def work(runs: Runs) -> list[Any]:
        choices = [None, Post(content="new"), Go("LATER"), Go("DONE", Post(content="gone"))]
        return [choices[int(run.data.content)] for run in runs]

    run_all(conn, dsn, batches(work, to={"LATER", "DONE"}), 4)
    # Two targets: None and plain data don't say which, so these two are dead after their attempts, alone.
    assert value(conn, "SELECT count(*) FROM outbox.dead_jobs WHERE error LIKE '%return Go(status)%'") == 2
    found = conn.execute(
        "SELECT entity_id, current_status, metadata->>'content' FROM outbox.workflow_states ORDER BY 1"
    )
    assert found.fetchall() == [("e0", "NEW", "0"), ("e1", "NEW", "1"), ("e2", "LATER", "2"), ("e3", "DONE", "gone")]


def test_what_one_raises_costs_the_others_nothing(effects: Conn, dsn: str) -> None:
    async def work(runs: Runs) -> None:
        await write_all(runs)
        if any(run.entity_id == "e3" for run in runs):
            raise ValueError("not e3")

    run_all(effects, dsn, batches(work), 20)
    assert entities(effects) == {f"e{n}" for n in range(20)} - {"e3"}
    assert value(effects, "SELECT max(attempt) FROM outbox.state_changes") == 1, "the others' first attempt counts"
    dead = effects.execute("SELECT entity_id, attempts, split_part(error, ' (', 1) FROM outbox.dead_jobs").fetchall()
    assert dead == [("e3", 4, "ValueError: not e3")]


def test_data_that_do_not_fit_end_one_workflow_only(effects: Conn, dsn: str) -> None:
    pipeline = deployed(effects, batches(write_all))
    pipeline.submit_many(effects, [(f"e{n}", Post()) for n in range(5)])
    effects.execute("UPDATE outbox.workflow_states SET metadata = '{\"content\": 5}' WHERE entity_id = 'e2'")
    drain_all(effects, dsn, pipeline)
    assert entities(effects) == {"e0", "e1", "e3", "e4"}
    assert value(effects, "SELECT entity_id FROM outbox.dead_jobs") == "e2"


def test_a_change_by_hand_takes_one_out_of_a_batch(effects: Conn, dsn: str) -> None:
    async def work(runs: Runs) -> None:
        await write_all(runs)
        with psycopg.connect(dsn) as other:
            other.execute(
                "UPDATE outbox.workflow_states SET current_status = 'MOVED'"
                " WHERE entity_id = 'e1' AND current_status = 'NEW'"
            )

    worker = run_all(effects, dsn, batches(work), 5)
    assert entities(effects) == {"e0", "e2", "e3", "e4"}
    assert status_of(effects, "e1") == "MOVED"
    assert (worker.counts.done, worker.counts.lost) == (4, 1)


@pytest.mark.parametrize("result", [[], [None], "DONE", Go("DONE"), {"a": 1}, [None] * 9])
def test_results_that_do_not_pair_with_the_runs_are_refused(effects: Conn, dsn: str, result: Any) -> None:
    async def work(runs: Runs) -> Any:
        await write_all(runs)
        return result if len(runs) > 1 else [None, None]

    run_all(effects, dsn, batches(work), 3)
    assert entities(effects) == set()
    error = "SELECT DISTINCT error FROM outbox.dead_jobs"
    assert "stage p.work returned 2 results for 1 runs: return a list of as many, or None" in value(effects, error)


def test_a_constraint_that_is_checked_at_commit_refuses_one(effects: Conn, dsn: str) -> None:
    effects.execute("CREATE TABLE outbox.known (entity text PRIMARY KEY)")
    effects.execute("INSERT INTO outbox.known SELECT 'e' || n FROM generate_series(0, 3) AS n")
    effects.execute(
        "ALTER TABLE outbox.witness ADD FOREIGN KEY (entity) REFERENCES outbox.known DEFERRABLE INITIALLY DEFERRED"
    )
    run_all(effects, dsn, batches(write_all), 5)
    assert entities(effects) == {"e0", "e1", "e2", "e3"}
    assert value(effects, "SELECT entity_id FROM outbox.dead_jobs") == "e4"


@pytest.mark.parametrize("misuse", ["COMMIT", "ROLLBACK"])
def test_a_handler_that_ends_the_transaction_fails_with_all_its_runs(effects: Conn, dsn: str, misuse: str) -> None:
    async def work(runs: Runs) -> None:
        await runs[0].connection.execute(misuse.encode())

    run_all(effects, dsn, batches(work), 3)
    assert value(effects, "SELECT count(*) FROM outbox.dead_jobs WHERE error LIKE '%ended the transaction%'") == 3


def test_a_batch_that_takes_too_long_fails_as_a_whole(effects: Conn, dsn: str) -> None:
    async def work(runs: Runs) -> None:
        await write_all(runs)
        if runs[0].attempt == 1:
            await asyncio.sleep(3600)

    first_out_of_time(effects, dsn, partial(batches, work), {f"e{n}": Post() for n in range(5)})
    assert entities(effects) == {f"e{n}" for n in range(5)}
    assert value(effects, "SELECT min(attempt) FROM outbox.witness") == 2


def test_an_in_progress_status_is_stored_before_a_batch_begins(effects: Conn, dsn: str) -> None:
    async def work(runs: Runs) -> None:
        with psycopg.connect(dsn) as other:
            ids = [run.workflow_id for run in runs]
            rows = other.execute(
                "SELECT current_status FROM outbox.workflow_states WHERE id = ANY (%s)", [ids]
            ).fetchall()
        assert rows == [("WORKING",)] * len(runs)

    run_all(effects, dsn, batches(work, running="WORKING"), 30)
    assert value(effects, "SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'DONE'") == 30
