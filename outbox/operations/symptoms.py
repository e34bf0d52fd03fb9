"""Looks for things that loop or make no progress although workers run. Each is a sign of a fault elsewhere.

Nothing here reads a whole table: each query has a limit, or an index that holds only what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from ..database import statements
from ..database.session import tuples
from ..definition.pipeline import Pipeline
from ..texts import number, printable, span, word
from .finding import Finding

SQL = statements.load("symptoms")

HELD_ROWS = 5.0
"""Seconds for which another session's open transaction may hold Outbox's rows. A shorter wait harms no one."""

HELD_TOO_LONG = 60.0
"""Seconds after its stage's timeout from which a held job is reported: it should have failed long before."""

MANY_UNFOLDED = 50_000
"""More unfolded rows of counts than this are reported. A busy worker writes a few thousand in the ten seconds between
two folds."""

Conn = psycopg.Connection[Any]


def look(conn: Conn, pipelines: Sequence[Pipeline[Any]]) -> Iterator[Finding]:
    """Yields the findings; none if all is well."""
    yield from _jobs(conn, pipelines)
    yield from _others(conn)
    if tuples(conn, SQL["counts_unfolded"], most=MANY_UNFOLDED)[0][0]:
        yield Finding(
            "warn", f"more than {MANY_UNFOLDED:,} rows of outbox.status_counts are not folded: overview becomes slow",
            "check the log of `outbox worker` for folding counts",
        )  # fmt: skip


def _jobs(conn: Conn, pipelines: Sequence[Pipeline[Any]]) -> Iterator[Finding]:
    for pipeline, stage, jobs, most, reason in tuples(conn, SQL["jobs_put_back_often"]):
        yield Finding(
            "warn",
            f"{number(jobs, 'job')} of {pipeline}.{stage} put back again and again, one of them {most} times in a row: "
            + printable(reason or "no reason is known"),
            "see to the reason; after some more times the attempt counts as failed",
        )  # fmt: skip
    for pipeline, status, entity, changes in tuples(conn, SQL["workflows_in_loops"]):
        yield Finding(
            "warn",
            f"workflow {printable(entity)} of {pipeline}, in {status}, has had {changes:,} changes: perhaps in a loop",
            f"look: outbox show --pipeline {word(pipeline)} -- {word(entity)}; and end the loop in the stages' code",
        )  # fmt: skip
    stages = [stage for pipeline in pipelines for stage in pipeline.stages.values()]
    held = tuples(
        conn, SQL["jobs_held_too_long"], pipelines=[stage.pipeline for stage in stages],
        stages=[stage.name for stage in stages], seconds=[stage.timeout + HELD_TOO_LONG for stage in stages],
    ) if stages else []  # fmt: skip
    for pipeline, stage, jobs, seconds in held:
        yield Finding(
            "bad",
            f"{number(jobs, 'job')} of {pipeline}.{stage} held for {span(seconds)}, far beyond its timeout",
            "look for `held up` or for errors in the log of `outbox worker`, and restart that worker if there is none",
        )  # fmt: skip
    for pipeline, status, entity, to_status, legal in tuples(conn, SQL["parents_stuck"]):
        yield Finding(
            "bad", f"workflow {printable(entity)} of {pipeline} waits in {status} though its children have ended",
            "check the log of `outbox worker`: what keeps it from moving is tried again each minute" if legal
            else f"from {status} to {to_status} is not a legal change: deploy one, or run outbox set-status",
        )  # fmt: skip


def _others(conn: Conn) -> Iterator[Finding]:
    for pid, name, state, table, seconds in tuples(conn, SQL["sessions_holding_rows"], long=HELD_ROWS):
        yield Finding(
            "warn", f"session pid {pid} ({printable(name)}, {state}) has rows of outbox.{table} in a transaction "
            f"that has been open for {seconds:.0f} s: what needs them waits",
            f"commit it, or end it: SELECT pg_terminate_backend({pid})",
        )  # fmt: skip
    for publication, table in tuples(conn, SQL["tables_without_identity"]):
        yield Finding(
            "bad", f"publication {printable(publication)} has outbox.{table}, which has no replica identity: "
            "Postgres refuses to change its rows",
            f"ALTER TABLE outbox.{table} REPLICA IDENTITY FULL, or take it out of the publication",
        )  # fmt: skip
    for (table,) in tuples(conn, SQL["tables_with_row_security"]):
        yield Finding(
            "bad", f"row security is on for outbox.{table}: workers may not see the rows that they are to work on",
            f"ALTER TABLE outbox.{table} DISABLE ROW LEVEL SECURITY",
        )  # fmt: skip
