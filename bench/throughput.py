"""How many pipeline steps a second one and two worker processes make, beside the same SQL alone, in the same run.

A step is: claim, handler, status change, history, message, next job. `python -m bench.throughput --help`
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import psycopg

from outbox import statements

from . import report
from .app import STAGES, Post, posts
from .database import Server, machine, server, worker

BATCH = 200
"""What a worker claims and commits at a time, and so what pgbench does."""

CLIENTS = 2


@click.command()
@click.option("--jobs", default=30_000, show_default=True, help="Workflows of a run; each makes three steps.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; the figures are medians over them.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(jobs: int, rounds: int, json_file: Path | None) -> None:
    """Measure submit and steps a second. In each round every subject has its turn, on a fresh database."""
    jobs -= jobs % (BATCH * CLIENTS)
    found: dict[str, list[float]] = {}
    with server() as postgres:
        subjects: dict[str, Callable[[str], float]] = {
            "submit_many": lambda dsn: submitted(dsn, jobs)[0],
            "one process": lambda dsn: steps(dsn, jobs, workers=1),
            "SQL alone": lambda dsn: sql_alone(postgres, dsn, jobs),
            "two processes": lambda dsn: steps(dsn, jobs, workers=2),
        }
        for number in range(1, rounds + 1):
            for name, measure in subjects.items():
                report.progress(f"round {number} of {rounds}: {name}")
                with postgres.database() as dsn:
                    found.setdefault(name, []).append(measure(dsn))
        where = machine(postgres.dsn)
    ratios = [mine / alone for mine, alone in zip(found["one process"], found["SQL alone"], strict=True)]
    figures = {
        "submit_many, workflows/s": report.spread(found["submit_many"]),
        "one process, steps/s": report.spread(found["one process"]),
        "two processes, steps/s": report.spread(found["two processes"]),
        f"SQL alone ({CLIENTS} clients of pgbench), steps/s": report.spread(found["SQL alone"]),
        "one process : SQL alone": report.spread(ratios),
    }
    report.show("throughput", {"jobs": jobs, "batch": BATCH, "rounds": rounds}, figures, where, json_file)


def submitted(dsn: str, jobs: int) -> tuple[float, Any]:
    """Submit all jobs in one transaction; return workflows/s, and the database's clock right after COMMIT."""
    text = "The new release made our nightly report three times faster, thank you! #postgres"
    started = time.monotonic()
    with psycopg.connect(dsn) as conn:
        posts.submit_many(conn, ((f"post_{n}", Post(content=text)) for n in range(jobs)))
        conn.commit()
        took = time.monotonic() - started
        (now,) = conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
    return jobs / took, now


def steps(dsn: str, jobs: int, workers: int) -> float:
    """Return steps/s of worker processes, from the commit that made all jobs to the last step."""
    with ExitStack() as running:
        for _ in range(workers):
            running.enter_context(worker(dsn))
        wait_until(dsn, f"SELECT count(*) = {workers} FROM outbox.workers WHERE idle", 60)
        _, start = submitted(dsn, jobs)
        wait_until(dsn, f"SELECT sum(workflows) = {jobs} FROM outbox.status_counts WHERE status = 'COMPLETED'", 600)
    return check_books(dsn, jobs, start)


def sql_alone(postgres: Server, dsn: str, jobs: int) -> float:
    """Return steps/s of pgbench with the engine's own two statements and batches, stage after stage."""
    _, start = submitted(dsn, jobs)
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        conn.execute("INSERT INTO outbox.workers (name, stages, lease) VALUES ('pgbench', '{}', '1 day')")
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
    """Return a script that claims a batch and finishes it: the worker's statements with pgbench's variables."""
    # The claim's last SELECT becomes one row of arrays, which is what pgbench can hand to the next statement.
    claim, select, rows = statements.load("claim")["jobs_claim"].decode().rpartition("\nSELECT ")
    finish = statements.load("commit")["jobs_finish_if_held"].decode()
    claims = {"worker": "1", "pipelines": "'{posts}'", "stages": f"'{{{stage}}}'", "careful": "false", "now": "NULL",
              "marks": "array[:mark]", "limits": f"'{{{BATCH}}}'"}  # fmt: skip
    finishes = {"worker": "1", "actor": "'worker-1'", "data": ":metadata"} | {
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


def check_books(dsn: str, jobs: int, start: Any) -> float:
    """Return steps/s since `start`; an error unless every step was made once, with its history and its message."""
    with psycopg.connect(dsn) as conn:
        counts = conn.execute(
            "SELECT (SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'),"
            " (SELECT count(*) FROM outbox.state_changes), (SELECT count(*) FROM outbox.messages),"
            " (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.dead_jobs)"
        ).fetchone()
        took = conn.execute(
            "SELECT extract(epoch FROM max(at) - %s)::float8 FROM outbox.state_changes", (start,)
        ).fetchone()
    expected = (jobs, jobs * (len(STAGES) + 1), jobs * len(STAGES), 0)
    if counts != expected or took is None:
        raise click.ClickException(
            f"the books are wrong: completed, changes, messages, left are {counts}, not {expected}"
        )
    return jobs * len(STAGES) / float(took[0])


def wait_until(dsn: str, question: str, timeout: float) -> None:
    """Return when the database answers true."""
    deadline = time.monotonic() + timeout
    with psycopg.connect(dsn, autocommit=True) as conn:
        while (conn.execute(question.encode()).fetchone() or [False])[0] is not True:
            if time.monotonic() > deadline:
                raise click.ClickException(f"not within {timeout:g} s: {question}")
            time.sleep(0.1)


if __name__ == "__main__":
    main()
