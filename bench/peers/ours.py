"""Runs Outbox's turn: one `outbox worker` process, which is idle when a transaction submits all workflows."""

from __future__ import annotations

import click
import psycopg

from outbox.definition import deploy

from ..kit.database import worker
from ..kit.steps import wait_until
from . import outbox as app
from .job import SCHEMA, STATUS_AFTER

STEPS = "Outbox"
WRITES = "Outbox, transaction=True"
SHARES = "Outbox, transaction=True, share=50"
BATCHES = "Outbox, transaction=True, batch=100"

SUBJECTS = {"steps": {STEPS: app.steps}, "writes": {WRITES: app.writes, SHARES: app.shares, BATCHES: app.batches}}


def rate(dsn: str, pipeline: app.Steps, jobs: int) -> float:
    """Returns the steps/s from the commit that made all workflows to the last step. Raises if the database is wrong."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(SCHEMA.encode())
        deploy.deploy(conn, pipeline)
        with worker(dsn, f"bench.peers.outbox:{pipeline.name}"):
            wait_until(dsn, "SELECT count(*) = 1 FROM outbox.workers WHERE idle", 60)
            with conn.transaction():
                pipeline.submit_many(conn, ((str(number), {}) for number in range(jobs)))
            (start,) = conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
            wait_until(dsn, f"SELECT sum(workflows) = {jobs} FROM outbox.status_counts WHERE status = 'COMPLETED'", 600)
        (took,) = conn.execute(
            "SELECT extract(epoch FROM max(at) - %s)::float8 FROM outbox.state_changes", (start,)
        ).fetchone() or (0.0,)
        books = conn.execute(
            "SELECT (SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'),"
            " (SELECT count(*) FROM outbox.state_changes),"
            " (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.dead_jobs),"
            " (SELECT count(*) FROM effects), (SELECT count(DISTINCT (workflow, stage)) FROM effects)"
        ).fetchone()
    steps = jobs * len(STATUS_AFTER)
    effects = 0 if pipeline is app.steps else steps
    if books != (jobs, jobs + steps, 0, effects, effects):
        raise click.ClickException(f"the books of {pipeline.name} are wrong: of {jobs:,} workflows {books}")
    return steps / float(took)
