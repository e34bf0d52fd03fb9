-- Dead jobs: which there are, and that they run again.

-- name: dead_jobs
-- Returns dead jobs, the latest first: all, those of a pipeline, or those of an error or its kind.
-- Reads dead_jobs, errors. Uses dead_jobs_by_status, dead_jobs_by_kind.
SELECT json_build_array(d.pipeline, d.entity_id, d.stage, d.status, d.attempts, d.error, d.kind, d.died_at)::text
FROM (
    SELECT d.* FROM (SELECT DISTINCT e.pipeline, e.status FROM outbox.errors AS e) AS e
    CROSS JOIN LATERAL (SELECT d.* FROM outbox.dead_jobs AS d WHERE d.pipeline = e.pipeline AND d.status = e.status
                        ORDER BY d.place DESC LIMIT %(limit)s::integer) AS d
    WHERE %(error)s::text IS NULL
    UNION ALL
    SELECT d.* FROM (SELECT DISTINCT e.pipeline, e.kind FROM outbox.errors AS e WHERE e.kind = outbox.error_kind(%(error)s)) AS e
    CROSS JOIN LATERAL (SELECT d.* FROM outbox.dead_jobs AS d WHERE d.pipeline = e.pipeline AND d.kind = e.kind
                        ORDER BY d.place DESC LIMIT %(limit)s::integer) AS d
    WHERE %(error)s::text IS NOT NULL
) AS d
WHERE %(pipeline)s::text IS NULL OR d.pipeline = %(pipeline)s
ORDER BY d.place DESC LIMIT %(limit)s::integer;

-- name: job_retry
-- Makes a new job for a workflow. Returns false if it has a live one, or if no stage takes its status. See the function in
-- sql/functions/jobs.sql.
-- Reads workflow_states. Writes actions, dead_jobs, jobs. Locks the workflow, and an advisory lock, shared. Uses
-- workflow_states_entity_key, workflow_states_pkey, dead_jobs_pkey, jobs_pkey.
SELECT outbox.retry(%(pipeline)s, %(entity)s, %(by)s, %(reason)s);

-- name: jobs_retry
-- Makes new jobs for the next dead jobs in the order of ids, after one (null: from the first), of a pipeline and of an error
-- or its kind (null: of any). Returns how many it made, and the last id that it looked at; null at the end.
-- Reads dead_jobs. Uses dead_jobs_pkey. `outbox.retry` locks the workflows, ids ascending.
WITH next AS MATERIALIZED (
    SELECT d.workflow_id FROM outbox.dead_jobs AS d
    WHERE (%(after)s::uuid IS NULL OR d.workflow_id > %(after)s::uuid)
      AND (%(pipeline)s::text IS NULL OR d.pipeline = %(pipeline)s)
      AND (%(error)s::text IS NULL OR d.kind = outbox.error_kind(%(error)s))
    ORDER BY d.workflow_id LIMIT %(limit)s::integer
), ids AS MATERIALIZED (
    SELECT array_agg(next.workflow_id ORDER BY next.workflow_id) AS all FROM next
)
SELECT outbox.retry(ids.all, %(by)s, %(reason)s), ids.all[cardinality(ids.all)]::text FROM ids;
