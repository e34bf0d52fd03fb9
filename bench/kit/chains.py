"""Makes pipelines of any length, and workflows at rest in them: the rows that the engine would leave, but faster.

The statements run without the triggers (session_replication_role), so they write what the triggers would have written:
the workflow in its last status, a row of history per change, the counts. At rest means that there is no job.
"""

from __future__ import annotations

from typing import Any

import psycopg

from outbox import Pipeline, Run
from outbox.database import statements

WAITING = "WAITING_FOR_REVIEW"
END = "COMPLETED"
WAITING_SHARE = 10
"""One of so many workflows at rest waits for a person. The others have ended."""

ACTOR = "worker-1"
AT_ONCE = 100_000

FILL = """
WITH path AS MATERIALIZED (
    -- What a workflow has been through when it rests: for each of both ends the statuses, and the stages that led on.
    SELECT waits, array_agg(status ORDER BY version) AS statuses, array_agg(stage ORDER BY version) AS stages
    FROM unnest(%(waits)s::boolean[], %(statuses)s::text[], %(stages)s::text[], %(versions)s::bigint[])
        AS p (waits, status, stage, version)
    GROUP BY waits
), made AS MATERIALIZED (
    SELECT outbox.uuid7() AS id, n, path.waits, path.statuses, path.stages
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
    JOIN path ON path.waits = (n %% %(share)s = 0)
), workflows AS (
    INSERT INTO outbox.workflow_states (id, pipeline, entity_id, current_status, metadata, version)
    SELECT id, %(pipeline)s, 'rest_' || n, statuses[cardinality(statuses)], %(metadata)s::text::jsonb,
           cardinality(statuses)
    FROM made
    RETURNING id, current_status
), resting AS (
    INSERT INTO outbox.resting (workflow_id, pipeline, status)
    SELECT id, %(pipeline)s, statuses[cardinality(statuses)] FROM made WHERE waits
), history AS (
    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, stage, attempt)
    SELECT id, statuses[version - 1], statuses[version], version,
           CASE WHEN version = 1 THEN session_user::text ELSE %(actor)s END,
           stages[version], CASE WHEN version > 1 THEN 1 END
    FROM made, generate_series(1, cardinality(statuses)) AS version
)
INSERT INTO outbox.status_counts (pipeline, status, workflows)
SELECT %(pipeline)s, current_status, count(*) FROM workflows GROUP BY current_status
"""


def chain(name: str, stages: int) -> Pipeline[dict[str, Any]]:
    """Returns a pipeline of consecutive stages. Each stage may also end the workflow, or make it wait for a person."""
    made = Pipeline(name, initial=status(0), final={END})
    for number in range(stages):
        targets = {status(number + 1) if number + 1 < stages else END, END, WAITING}
        made.stage(f"stage_{number}", on=status(number), to=targets)(_handle)
    made.allow(WAITING, to=status(0))
    return made


async def _handle(run: Run[dict[str, Any]]) -> None:
    """Does nothing and is never called: only the database is measured."""


def status(number: int) -> str:
    """Returns the status that the stage of this number takes."""
    return f"STATUS_{number}"


def next_status(pipeline: Pipeline[Any], now: str) -> str:
    """Returns the status to which the chain leads from a status."""
    number = int(now.removeprefix(status(0)[:-1])) + 1
    return status(number) if number < len(pipeline.stages) else END


def fill(conn: psycopg.Connection, pipeline: Pipeline[Any], workflows: int, metadata: str) -> None:
    """Adds workflows that have passed through the pipeline. One in ten waits for a person instead of having ended."""
    numbers = range(len(pipeline.stages))
    ended = [(False, status(n), n) for n in numbers] + [(False, END, len(numbers))]
    waits = [(True, status(n), n) for n in numbers] + [(True, WAITING, len(numbers))]
    path = [(waiting, at, f"stage_{n - 1}" if n else None, n + 1) for waiting, at, n in ended + waits]
    columns = dict(zip(("waits", "statuses", "stages", "versions"), map(list, zip(*path, strict=True)), strict=True))
    constant = {"pipeline": pipeline.name, "metadata": metadata, "actor": ACTOR, "share": WAITING_SHARE}
    conn.execute("SET session_replication_role = replica")
    for first in range(1, workflows + 1, AT_ONCE):
        last = min(first + AT_ONCE - 1, workflows)
        conn.execute(FILL, {**constant, **columns, "first": first, "last": last})
    conn.execute("RESET session_replication_role")
    fold(conn)
    conn.execute("VACUUM (ANALYZE)")


def fold(conn: psycopg.Connection) -> None:
    """Folds the log of counts, as a worker does every ten seconds."""
    conn.execute(statements.load("maintenance")["counts_fold"])
