-- Step 2: claims jobs, under the worker's lease.

-- name: jobs_claim
-- Claims up to `limits[n]` ready jobs of each queue for a worker, oldest first, and returns them with their data.
-- `careful` means that the worker has no careful job: then one from any of these queues is claimed as well.
-- Reads pauses, workers, workflow_states. Writes jobs. Locks jobs only, with SKIP LOCKED, so it can't deadlock with a
-- change by hand, which locks the workflow first. Uses jobs_ready_for_claim, jobs_pkey, workflow_states_pkey.
WITH picked AS MATERIALIZED (
    -- MATERIALIZED with a LIMIT of its own, because an IN (... LIMIT n) may be evaluated again and take more than n.
    -- `mark` is where the last scan ended: the scan doesn't walk over dead index entries below it again.
    SELECT j.workflow_id
    FROM (
        SELECT q.pipeline, q.stage, q.mark, q.size
        FROM unnest(%(pipelines)s::text[], %(stages)s::text[], %(marks)s::bigint[], %(limits)s::integer[])
            AS q (pipeline, stage, mark, size)
        WHERE NOT EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = q.pipeline AND p.stage = q.stage)
        OFFSET 0  -- evaluated once a queue, not once a job
    ) AS q
    CROSS JOIN LATERAL (
        SELECT j.workflow_id
        FROM outbox.jobs AS j
        WHERE j.pipeline = q.pipeline AND j.stage = q.stage AND NOT j.careful
          AND j.id > q.mark AND j.owner IS NULL AND j.due
          AND j.partition IS NULL  -- a limited stage has jobs_claim_limited
          -- A worker that could not read the job's data leaves it to others for a while: see jobs_put_back.
          AND (j.released_by IS DISTINCT FROM %(worker)s::integer OR j.run_at < now() - interval '30 seconds')
        ORDER BY j.id
        LIMIT q.size
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
    -- Without its row, a worker would claim jobs that the next sweep frees, and waste an attempt of each.
    WHERE EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = %(worker)s::integer)
), careful AS MATERIALIZED (
    -- The next attempt at a careful job is its last, and the job may be what killed its workers before. Two of them in
    -- one process would die together, although only one is the cause. The loop over the queues ends at the first one
    -- found.
    SELECT j.workflow_id
    FROM (SELECT q.pipeline, q.stage FROM unnest(%(pipelines)s::text[], %(stages)s::text[]) AS q (pipeline, stage)
          ORDER BY random()) AS q
    CROSS JOIN LATERAL (
        SELECT j.workflow_id
        FROM outbox.jobs AS j
        WHERE j.pipeline = q.pipeline AND j.stage = q.stage AND j.careful AND j.owner IS NULL AND j.due
          AND j.partition IS NULL
          AND (j.released_by IS DISTINCT FROM %(worker)s::integer OR j.run_at < now() - interval '30 seconds')
        ORDER BY j.id
        LIMIT 1
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS j
    WHERE %(careful)s AND EXISTS (SELECT FROM outbox.workers AS w WHERE w.id = %(worker)s::integer)
      AND NOT EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = q.pipeline AND p.stage = q.stage)
    LIMIT 1
), claimed AS (
    -- An array, not a join: if a queue was empty when it was analyzed, the planner takes it for empty, and a join would
    -- walk over its whole index, including dead entries, to find these few.
    UPDATE outbox.jobs AS j
    SET owner = %(worker)s::integer, attempt = j.attempt + 1, claimed_at = coalesce(%(now)s::timestamptz, now())
    WHERE j.workflow_id = ANY (
        ARRAY(SELECT picked.workflow_id FROM picked UNION ALL SELECT careful.workflow_id FROM careful))
    RETURNING j.workflow_id, j.id, j.pipeline, j.stage, j.entered, j.attempt, j.careful
)
SELECT c.pipeline, c.stage, c.id, c.workflow_id::text, c.entered, c.attempt, c.careful,
       -- An empty status means that the job was made by hand and doesn't belong to this workflow.
       w.entity_id, CASE WHEN w.pipeline = c.pipeline AND w.version >= c.entered THEN w.current_status ELSE '' END AS status,
       w.version, w.metadata::text
FROM claimed AS c
JOIN outbox.workflow_states AS w ON w.id = c.workflow_id
ORDER BY c.id;

-- name: jobs_claim_limited
-- Claims jobs of limited stages, each within its limits. See the function in sql/functions/limits.sql.
-- Reads pauses, workers, workflow_states. Writes jobs, limits, partition_rates. Locks the stages' rows in limits, in
-- order, then jobs with SKIP LOCKED. Uses jobs_ready_by_partition, jobs_running_by_partition, limits_pkey,
-- partition_rates_pkey, jobs_pkey, workflow_states_pkey.
SELECT c.*
FROM (SELECT q.pipeline, q.stage, q.size, q.careful
      FROM unnest(%(pipelines)s::text[], %(stages)s::text[], %(limits)s::integer[], %(careful)s::boolean[])
          AS q (pipeline, stage, size, careful)
      ORDER BY q.pipeline, q.stage) AS q
CROSS JOIN LATERAL outbox.jobs_claim_limited(
    %(worker)s::integer, q.pipeline, q.stage, q.size, q.careful, %(lead)s::float8, %(ahead)s::float8, %(slack)s::float8) AS c;

-- name: jobs_start_if_held
-- Moves claimed workflows to their stage's in-progress status; the trigger keeps the job. Returns their new versions.
-- Workflows that another session has locked are left out.
-- Reads jobs. Writes workflow_states. Locks the workflow, then the job, ids ascending. Uses workflow_states_pkey,
-- jobs_pkey.
WITH me AS MATERIALIZED (
    SELECT set_config('outbox.worker', %(worker)s::integer::text, true), set_config('outbox.actor', %(actor)s, true),
           set_config('lock_timeout', %(lock_ms)s::integer::text, true)
), workflow AS MATERIALIZED (
    SELECT w.id, o.job, o.attempt, o.status
    FROM me, unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[], %(versions)s::bigint[],
                    %(statuses)s::text[]) AS o (id, job, attempt, version, status)
    JOIN outbox.workflow_states AS w ON w.id = o.id AND w.version = o.version
    ORDER BY w.id
    FOR NO KEY UPDATE OF w SKIP LOCKED
), held AS MATERIALIZED (
    SELECT workflow.id, workflow.status
    FROM workflow
    CROSS JOIN LATERAL (
        SELECT FROM outbox.jobs AS j
        WHERE j.workflow_id = workflow.id
            AND j.id = workflow.job AND j.owner IS NOT DISTINCT FROM %(worker)s::integer AND j.attempt = workflow.attempt
        FOR UPDATE
    ) AS j
)
UPDATE outbox.workflow_states AS w
SET current_status = held.status, version = w.version + 1, updated_at = clock_timestamp()
FROM held
WHERE w.id = held.id
RETURNING w.id::text, w.version;

-- name: jobs_give_back_unknown
-- Releases jobs claimed under this worker's id that never reached it, because the answer to the claim was lost.
-- Writes jobs. Locks jobs only, with SKIP LOCKED. Uses jobs_running, jobs_pkey.
WITH unknown AS MATERIALIZED (
    SELECT j.workflow_id
    FROM outbox.jobs AS j
    WHERE j.owner = %(worker)s::integer AND j.claimed_at <= now() - make_interval(secs => %(age)s)
      AND j.workflow_id <> ALL (%(known)s::uuid[])
    ORDER BY j.workflow_id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE outbox.jobs AS j
SET owner = NULL, claimed_at = NULL, attempt = j.attempt - 1
FROM unknown
WHERE j.workflow_id = unknown.workflow_id
RETURNING j.workflow_id::text;
