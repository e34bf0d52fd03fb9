"""Measures each list's first and hundredth page among ten million workflows, beside a working engine.

`python -m bench.lists --help`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import psycopg

from outbox import Go, Pipeline, Run, why
from outbox.database import statements
from outbox.definition import deploy
from outbox.operations import look

from .kit import load, report
from .kit.database import Server, machine, server, worker

PAGE = 100
HUNDREDTH = 99
"""How many pages come before the hundredth one."""

AT_ONCE = 100_000
RATE = 300
"""Workflows that are submitted a second, and three steps of each, beside the lists."""

FOREVER = 4_000_000
"""More workflows than are submitted while the lists are read: the load ends with them."""

pages: Pipeline[Any] = Pipeline("lists", initial="NEW", final={"DONE", "CANCELLED"})


@pages.stage("work", on="NEW", to={"DONE", "WAITING", "ASKED", "ODD", "CANCELLED"})
async def work(run: Run[Any]) -> Go[Any]:
    """Is never called: no worker serves this pipeline."""
    return Go("DONE")


pages.allow("WAITING", to="DONE")
pages.allow("ASKED", to="DONE")
pages.allow("ODD", to="DONE")

# What the triggers would have written, but faster: a tenth has a dead job, a hundredth asks a person, another one
# rests, and so on; a hundred workflows have what is rare.
FILL = """
WITH made AS MATERIALIZED (
    SELECT outbox.uuid7() AS id, n, 'post_' || n AS entity_id,
           CASE WHEN n %% 10 = 0 THEN 'dead' WHEN n %% 100 = 1 THEN 'asked' WHEN n %% 100 = 2 THEN 'waiting'
                WHEN n %% 100 = 3 THEN 'ready' WHEN n %% 100 = 4 THEN 'later' WHEN n %% %(rare)s = 5 THEN 'odd'
                WHEN n %% %(rare)s = 6 THEN 'cancelled' ELSE 'done' END AS what,
           now() - (%(workflows)s - n) * interval '60 days' / %(workflows)s AS at
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
), placed AS MATERIALIZED (
    SELECT m.*, CASE WHEN m.what IN ('dead', 'ready', 'later') THEN 'NEW' ELSE upper(m.what) END AS status
    FROM made AS m
), workflows AS (
    INSERT INTO outbox.workflow_states (id, pipeline, entity_id, current_status, metadata, created_at, updated_at)
    SELECT p.id, 'lists', p.entity_id, p.status, %(metadata)s::text::jsonb, p.at, p.at FROM placed AS p ORDER BY p.n
), history AS (
    INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, at)
    SELECT p.id, p.status, 1, 'bench', p.at FROM placed AS p ORDER BY p.n
), resting AS (
    INSERT INTO outbox.resting (workflow_id, pipeline, status, since)
    SELECT p.id, 'lists', p.status, p.at FROM placed AS p WHERE p.what IN ('asked', 'waiting', 'odd') ORDER BY p.n
), asked AS (
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, assignee,
                                  asked_at)
    SELECT p.id, 'lists', p.entity_id, p.status, 1, 'Is this right?', 'x', '{"approve": "DONE"}',
           CASE WHEN p.n %% %(rare)s = 1 THEN 'rare' ELSE 'person_' || p.n / 100 %% 100 END, p.at
    FROM placed AS p WHERE p.what = 'asked' ORDER BY p.n
), jobs AS (
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, run_at, due)
    SELECT p.id, 'lists', 'work', p.status, 1, CASE p.what WHEN 'later' THEN now() + interval '1 day' ELSE p.at END,
           p.what = 'ready'
    FROM placed AS p WHERE p.what IN ('ready', 'later') ORDER BY p.n
), dead AS (
    INSERT INTO outbox.dead_jobs (workflow_id, pipeline, entity_id, stage, status, entered, attempts, error, died_at,
                                  kind, place)
    SELECT p.id, 'lists', p.entity_id, 'work', p.status, 1, 8, e.error, p.at, outbox.error_kind(e.error),
           nextval('outbox.job_ids')
    FROM placed AS p
    CROSS JOIN LATERAL (
        SELECT CASE WHEN p.n %% %(rare)s = 0 THEN 'RareError: ' || p.n
                    ELSE format('ValueError: no %%s for customer %%s', chr(97 + (p.n / 10 %% 20)::integer), p.n)
               END AS error
    ) AS e
    WHERE p.what = 'dead' ORDER BY p.n
    RETURNING pipeline, stage, status, kind, died_at
), counted AS (
    INSERT INTO outbox.dead_counts (pipeline, stage, status, kind, jobs, at)
    SELECT d.pipeline, d.stage, d.status, d.kind, count(*), max(d.died_at)
    FROM dead AS d GROUP BY d.pipeline, d.stage, d.status, d.kind
)
INSERT INTO outbox.status_counts (pipeline, status, workflows)
SELECT 'lists', p.status, count(*) FROM placed AS p GROUP BY p.status
"""
RARE_KIND, COMMON_KIND = "RareError: #", "ValueError: no c for customer #"
METADATA = '{"content": "The new release made our nightly report three times faster, thank you! #postgres"}'

LISTS: dict[str, dict[str, Any]] = {
    "all": {},
    "final status": {"status": "DONE"},
    "rare final status": {"status": "CANCELLED"},
    "status at rest": {"status": "WAITING"},
    "rare status": {"status": "ODD"},
    "status of a stage": {"status": "NEW"},
    "older than 30 days": {"older": timedelta(days=30)},
    "status, older than 59 days": {"status": "NEW", "older": timedelta(days=59)},
    "dead": {"dead": True},
    "kind of error": {"error": COMMON_KIND},
    "rare kind of error": {"error": RARE_KIND},
    "open questions": {"waits_for": "approval"},
    "assignee": {"assignee": "person_7"},
    "rare assignee": {"assignee": "rare"},
    "waits for its time": {"waits_for": "timer"},
    "waits for a worker": {"waits_for": "worker"},
    "waits for nothing there is": {"waits_for": "children"},
    "entity prefix": {"entity": "post_1"},
    "entity prefix and status": {"entity": "post_1", "status": "WAITING"},
}
NEWEST = {"all", "final status", "rare final status"}
"""The lists whose first workflow is the newest one."""


@click.command()
@click.option("--workflows", default=10_000_000, show_default=True, help="Workflows in the tables.")
@click.option("--times", default=50, show_default=True, help="How often each page is read.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@report.svg_option
def main(workflows: int, times: int, json_file: Path | None, svg_file: Path | None) -> None:
    """Read lists among many workflows: a tenth has a dead job, a hundredth asks a person, while a worker works."""
    with server() as postgres, postgres.database() as dsn:
        fill(dsn, workflows)
        with beside(postgres, dsn), psycopg.connect(dsn, autocommit=True) as conn:
            figures: dict[str, dict[str, float]] = {}
            newest = pages.get(conn, f"post_{workflows}")
            assert newest is not None
            for name, asked in LISTS.items():
                report.progress(name)
                # Otherwise the lists of the newest would look at those of the load, which are of another pipeline.
                start = f"i:{newest.id}" if name in NEWEST else None
                for part, samples in measured(conn, asked, times, start).items():
                    figures[f"{name}: {part}, p50 ms"] = report.spread([report.percentile(samples, 0.5)])
                    figures[f"{name}: {part}, p95 ms"] = report.spread([report.percentile(samples, 0.95)])
            for name, look_up in looks(conn).items():
                report.progress(name)
                samples = [timed(look_up) for _ in range(times)]
                figures[f"{name}: p50 ms"] = report.spread([report.percentile(samples, 0.5)])
                figures[f"{name}: p95 ms"] = report.spread([report.percentile(samples, 0.95)])
        settings = {"workflows": workflows, "times": times}
        report.show("lists", settings, figures, machine(dsn), json_file, svg_file)


def fill(dsn: str, workflows: int) -> None:
    """Writes the workflows without the triggers, and lets Postgres see them as it would after a while."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        deploy.deploy(conn, pages)
        conn.execute("SET session_replication_role = replica")
        constant = {"workflows": workflows, "metadata": METADATA, "rare": max(1_000, workflows // 100)}
        for first in range(1, workflows + 1, AT_ONCE):
            conn.execute(FILL, {**constant, "first": first, "last": min(first + AT_ONCE - 1, workflows)})
            if first % 1_000_000 == 1:
                report.progress(f"{first - 1:,} of {workflows:,} workflows")
        for name in ("counts_fold", "deaths_fold"):
            conn.execute(statements.load("maintenance")[name])
        conn.execute("VACUUM (ANALYZE)")


@contextmanager
def beside(postgres: Server, dsn: str) -> Iterator[None]:
    """Lets a worker work on workflows that are submitted at a steady rate."""
    with worker(dsn), load.sending(postgres, dsn, FOREVER, RATE):
        yield


def measured(
    conn: psycopg.Connection[Any], asked: dict[str, Any], times: int, after: str | None
) -> dict[str, list[float]]:
    """Returns the ms of the first page, and of the hundredth and those that follow, where there are so many."""
    start = after
    found = {"first page": [timed(lambda: pages.find(conn, limit=PAGE, after=start, **asked)) for _ in range(times)]}
    for _ in range(HUNDREDTH):
        after = pages.find(conn, limit=PAGE, after=after, **asked).after
        if after is None:
            return found
    samples = found["hundredth page"] = []
    for _ in range(times):
        started = time.monotonic()
        page = pages.find(conn, limit=PAGE, after=after, **asked)
        samples.append((time.monotonic() - started) * 1000)
        after = page.after or after
    return found


def looks(conn: psycopg.Connection[Any]) -> dict[str, Callable[[], Any]]:
    """Returns what else a person asks of so many workflows."""
    return {
        "outbox status": lambda: look.status(conn),
        "outbox dead": lambda: look.dead(conn, "lists"),
        "outbox dead --kinds": lambda: look.errors(conn),
        "outbox approvals": lambda: look.approvals(conn, pipeline="lists"),
        "one workflow": lambda: pages.get(conn, "post_4"),
        "why, behind others": lambda: why(conn, pages, "post_103"),
        "why, dead": lambda: why(conn, pages, "post_10"),
        "outbox show": lambda: look.show(conn, look.find_one(conn, "post_1", "lists")),
    }


def timed(work: Callable[[], Any]) -> float:
    """Returns how many ms it takes."""
    started = time.monotonic()
    work()
    return (time.monotonic() - started) * 1000


if __name__ == "__main__":
    main()
