"""Runs workflows through a pipeline with real worker processes, and checks the database afterwards."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click
import psycopg

from .app import POSTS, Post, Shape
from .database import worker

SIZE = 100
"""The default size of a workflow's data, in characters."""


EMPTY = len(Post(content="").model_dump_json())


def made(workflows: int, size: int) -> list[Post]:
    """Returns data of `size` characters as JSON for each workflow. The letters are random, so they don't compress."""
    text = "".join(random.choices(string.ascii_letters, k=size + workflows))
    return [Post(content=text[n : n + size - EMPTY]) for n in range(workflows)]


def submitted(dsn: str, jobs: int, shape: Shape = POSTS, size: int = SIZE) -> tuple[float, Any]:
    """Submits all jobs in one transaction. Returns workflows/s, and the database's clock right after COMMIT."""
    items = made(jobs, size)
    started = time.monotonic()
    with psycopg.connect(dsn) as conn:
        shape.pipeline.submit_many(conn, ((f"post_{number}", item) for number, item in enumerate(items)))
        conn.commit()
        took = time.monotonic() - started
        (now,) = conn.execute("SELECT clock_timestamp()").fetchone() or (None,)
    return jobs / took, now


def steps(
    dsn: str, jobs: int, workers: int = 1, shape: Shape = POSTS, size: int = SIZE, begun: Callable[[], object] = bool
) -> float:
    """Returns the steps/s of worker processes, from the commit that made all jobs to the last step.

    `begun` is called right after that commit.
    """
    with ExitStack() as running:
        for _ in range(workers):
            running.enter_context(worker(dsn, f"{shape.module}:{shape.pipeline.name}"))
        wait_until(dsn, f"SELECT count(*) = {workers} FROM outbox.workers WHERE idle", 60)
        _, start = submitted(dsn, jobs, shape, size)
        begun()
        wait_until(dsn, f"SELECT sum(workflows) = {jobs} FROM outbox.status_counts WHERE status = 'COMPLETED'", 600)
    return check_books(dsn, jobs, start, shape)


def check_books(dsn: str, jobs: int, start: Any, shape: Shape = POSTS) -> float:
    """Returns the steps/s since `start`. Raises unless every step was made once, with all that belongs to it."""
    with psycopg.connect(dsn) as conn:
        counts = conn.execute(
            "SELECT (SELECT count(*) FROM outbox.workflow_states WHERE current_status = 'COMPLETED'),"
            " (SELECT count(*) FROM outbox.state_changes), (SELECT count(*) FROM outbox.messages),"
            " (SELECT count(*) FROM (SELECT DISTINCT entity, stage FROM booked) AS b), (SELECT count(*) FROM booked),"
            " (SELECT count(*) FROM outbox.jobs) + (SELECT count(*) FROM outbox.dead_jobs)"
        ).fetchone()
        took = conn.execute(
            "SELECT extract(epoch FROM max(at) - %s)::float8 FROM outbox.state_changes", (start,)
        ).fetchone()
    rows = jobs * shape.rows
    expected = (jobs, jobs * (shape.steps + 1), jobs * shape.messages, rows, rows, 0)
    if counts != expected or took is None:
        raise click.ClickException(
            f"the books are wrong: completed, changes, messages, different rows, rows, left: {counts}, not {expected}"
        )
    return jobs * shape.steps / float(took[0])


def wait_until(dsn: str, question: str, timeout: float) -> None:
    """Returns when the database answers true. Raises after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    with psycopg.connect(dsn, autocommit=True) as conn:
        while (conn.execute(question.encode()).fetchone() or [False])[0] is not True:
            if time.monotonic() > deadline:
                raise click.ClickException(f"not within {timeout:g} s: {question}")
            time.sleep(0.1)
