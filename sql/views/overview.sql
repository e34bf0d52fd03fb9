-- What a person looks at first: one row for each pipeline, status and stage.
--
-- It is fast at a million rows because it counts none of them. Workflows and dead jobs come from the logs of differences. A
-- workflow in a status that a stage takes has one job, live or dead; so the ready ones are what remains when the scheduled,
-- running, dead and parked ones are taken off. All but the dead ones are few, and have an index of their own. Jobs without a stage are
-- deadlines, and are not counted.
CREATE OR REPLACE VIEW outbox.overview AS
WITH workflows AS (
    SELECT pipeline, status, sum(workflows)::bigint AS n FROM outbox.status_counts GROUP BY pipeline, status
), scheduled AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL AND run_at > now() GROUP BY pipeline, stage, status
), parked AS (
    SELECT pipeline, status, count(*) AS n FROM outbox.jobs WHERE due IS NULL GROUP BY pipeline, status
), running AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NOT NULL GROUP BY pipeline, stage, status
), dead AS (
    SELECT pipeline, stage, status, sum(jobs) AS n FROM outbox.errors GROUP BY pipeline, stage, status
)
SELECT
    r.pipeline,
    r.status,
    r.stage,
    coalesce(w.n, 0) AS workflows,
    CASE WHEN r.stage IS NULL THEN 0
         ELSE greatest(coalesce(w.n, 0) - coalesce(s.n, 0) - coalesce(c.n, 0) - coalesce(d.n, 0)::bigint - coalesce(k.n, 0), 0)
    END AS ready,
    coalesce(s.n, 0) AS scheduled,
    coalesce(c.n, 0) AS running,
    coalesce(d.n, 0)::bigint AS dead,
    -- The age of the job that is first in line; null where no job waits. An in-progress status shares its stage's line.
    CASE WHEN r.running THEN NULL ELSE now() - (
        SELECT min(o.run_at) FROM (
            SELECT j.run_at FROM outbox.jobs AS j
            WHERE j.pipeline = r.pipeline AND j.stage = r.stage AND NOT j.careful AND j.owner IS NULL AND j.due
            ORDER BY j.id LIMIT 1
        ) AS o
    ) END AS oldest_waiting,
    EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = r.pipeline AND p.stage = r.stage) AS paused
FROM outbox.routes AS r
LEFT JOIN workflows AS w ON w.pipeline = r.pipeline AND w.status = r.status
LEFT JOIN scheduled AS s ON s.pipeline = r.pipeline AND s.status = r.status AND s.stage = r.stage
LEFT JOIN parked AS k ON k.pipeline = r.pipeline AND k.status = r.status
LEFT JOIN running AS c ON c.pipeline = r.pipeline AND c.status = r.status AND c.stage = r.stage
LEFT JOIN dead AS d ON d.pipeline = r.pipeline AND d.status = r.status AND d.stage = r.stage;
COMMENT ON VIEW outbox.overview IS
    'One row for each pipeline, status and stage: how many workflows are there, and how many of their jobs are in which state.';
