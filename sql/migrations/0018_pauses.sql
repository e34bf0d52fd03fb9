-- Stages that nobody claims for until they are resumed: INSERT pauses, DELETE resumes. What runs already goes on.
CREATE TABLE outbox.pauses (
    pipeline  text COLLATE "C" NOT NULL,
    stage     text COLLATE "C" NOT NULL,
    paused_by text NOT NULL DEFAULT outbox.actor(),
    reason    text,
    paused_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pauses_pkey PRIMARY KEY (pipeline, stage)
);

CREATE OR REPLACE VIEW outbox.overview AS
WITH workflows AS (
    SELECT pipeline, status, sum(workflows)::bigint AS n FROM outbox.status_counts GROUP BY pipeline, status
), scheduled AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL AND run_at > now() GROUP BY pipeline, stage, status
), running AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NOT NULL GROUP BY pipeline, stage, status
), dead AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.dead_jobs GROUP BY pipeline, stage, status
)
SELECT
    r.pipeline,
    r.status,
    r.stage,
    coalesce(w.n, 0) AS workflows,
    CASE WHEN r.stage IS NULL THEN 0
         ELSE greatest(coalesce(w.n, 0) - coalesce(s.n, 0) - coalesce(c.n, 0) - coalesce(d.n, 0), 0)
    END AS ready,
    coalesce(s.n, 0) AS scheduled,
    coalesce(c.n, 0) AS running,
    coalesce(d.n, 0) AS dead,
    -- The job that is first in line; null where nothing waits. An in-progress status shares its stage's line.
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
LEFT JOIN running AS c ON c.pipeline = r.pipeline AND c.status = r.status AND c.stage = r.stage
LEFT JOIN dead AS d ON d.pipeline = r.pipeline AND d.status = r.status AND d.stage = r.stage;
