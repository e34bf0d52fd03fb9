"""Measures the engine's own statements without any Python: pgbench claims and finishes in the same batches."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import click
import psycopg

from outbox.database import statements

from .app import STAGES
from .database import Server
from .steps import check_books, submitted

BATCH = 200
"""How many jobs pgbench claims and commits at a time, as a worker does."""

CLIENTS = 2


def sql_alone(postgres: Server, dsn: str, jobs: int) -> float:
    """Returns the steps/s of pgbench with the engine's own two statements and batches, stage after stage."""
    _, start = submitted(dsn, jobs)
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        conn.execute("INSERT INTO outbox.workers (id, name, stages, lease) VALUES (1, 'pgbench', '{}', '1 day')")
        (start,) = conn.execute("SELECT clock_timestamp()").fetchone() or (start,)
        for name, _, to in STAGES:
            script = Path(folder, f"{name}.sql")
            script.write_text(pgbench_script(name, to))
            share = jobs // BATCH // CLIENTS
            options = (f"--client={CLIENTS}", f"--jobs={CLIENTS}", f"--transactions={share}", "--define=mark=0")
            command = [str(postgres.programs / "pgbench"), "--no-vacuum", "--protocol=prepared", *options]
            done = subprocess.run([*command, f"--file={script}", dsn], capture_output=True, text=True, check=False)
            if done.returncode:
                raise click.ClickException(f"pgbench: {done.stderr}")
    return check_books(dsn, jobs, start)


def pgbench_script(stage: str, to: str) -> str:
    """Returns a script that claims a batch and finishes it: the worker's statements with pgbench's variables."""
    # The claim's last SELECT becomes one row of arrays, because pgbench can pass only that to the next statement.
    claim, select, rows = statements.load("claim")["jobs_claim"].decode().rpartition("\nSELECT ")
    finish = statements.load("commit")["jobs_finish_if_held"].decode()
    claims = {"worker": "1", "pipelines": "'{posts}'", "stages": f"'{{{stage}}}'", "careful": "false", "now": "NULL",
              "marks": "array[:mark]", "limits": f"'{{{BATCH}}}'"}  # fmt: skip
    finishes = {"worker": "1", "actor": "'worker-1'", "claim": "''", "waits": "''", "data": ":metadata",
                "wait": "false", "lock_ms": "500"} | {
        name: f":{name}" for name in
        ("ids", "jobs", "attempts", "versions", "statuses", "senders", "topics", "keys", "payloads", "headers")
    }  # fmt: skip
    data = "c.metadata" if stage == "enrich" else "NULL::text"
    return f"""
        {_fill(claim, claims)}, c AS ({select}{rows})
        SELECT max(c.id) AS mark, array_agg(c.workflow_id) AS ids, array_agg(c.id) AS jobs,
               array_agg(c.attempt) AS attempts, array_agg(c.version) AS versions,
               array_agg('{to}'::text) AS statuses, array_agg({data}) AS metadata,
               array_agg(c.workflow_id) AS senders, array_agg('posts.{stage}'::text) AS topics,
               array_agg(c.entity_id) AS keys, array_agg(format('{{"entity_id":"%s"}}', c.entity_id)) AS payloads,
               array_agg(NULL::text) AS headers
        FROM c \\gset
        {_fill(finish, finishes)};
    """


def _fill(statement: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        statement = statement.replace(f"%({name})s", value)
    return statement.replace("%%", "%")
