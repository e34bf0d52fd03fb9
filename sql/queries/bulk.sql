-- What a person does to all workflows of a list. Each statement takes the workflows of a batch: it locks them, ids ascending, and
-- passes over those that have moved since they were listed.

-- name: dead_kept
-- Returns how many dead jobs there are of a pipeline, a status, a stage, an error or its kind (null: of any), and the time.
-- Reads errors.
SELECT coalesce(sum(e.jobs), 0)::bigint, now()::text FROM outbox.errors AS e
WHERE (%(pipeline)s::text IS NULL OR e.pipeline = %(pipeline)s) AND (%(status)s::text IS NULL OR e.status = %(status)s)
  AND (%(stage)s::text IS NULL OR e.stage = %(stage)s) AND (%(error)s::text IS NULL OR e.kind = outbox.error_kind(%(error)s));

-- name: workflows_kept
-- Returns how many workflows of a pipeline, or in a status (null: of any), have not ended, and the time.
-- Reads routes, status_counts. Uses routes_pkey.
SELECT coalesce(sum(c.workflows), 0)::bigint, now()::text
FROM outbox.status_counts AS c
JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.status AND NOT r.final
WHERE (%(pipeline)s::text IS NULL OR c.pipeline = %(pipeline)s) AND (%(status)s::text IS NULL OR c.status = %(status)s);

-- name: workflows_count
-- Returns how many of the first rows of a list have not ended and are of a stage (null: of any), the cursor of the last row (null
-- at the end of the list), and the time. See sql/functions/find.sql.
-- Reads approvals, dead_jobs, jobs, pipelines, resting, routes, state_changes, waits, workflow_states. Uses
-- workflow_states_entity_key, approvals_open_by_time, approvals_open_by_pipeline, approvals_open_by_assignee,
-- dead_jobs_by_status, dead_jobs_by_kind, resting_by_status, jobs_ready_for_claim, jobs_scheduled_by_status, jobs_running,
-- workflow_states_pkey.
SELECT count(f.id) FILTER (WHERE (%(stage)s::text IS NULL OR f.stage = %(stage)s::text) AND f.state <> 'finished'),
       CASE WHEN count(*) >= %(most)s::integer OR bool_or(f.id IS NULL) THEN (array_agg(f.cursor ORDER BY f.ordinality DESC))[1] END,
       now()::text
FROM outbox.find(
    of_pipeline => %(pipeline)s, in_status => %(status)s, entity_prefix => %(entity)s,
    older_than => make_interval(secs => %(older)s::float8), assigned_to => %(assignee)s, waiting_for => %(waits_for)s,
    only_dead => %(dead)s::boolean, of_kind => outbox.error_kind(%(error)s), most => %(most)s::integer
) WITH ORDINALITY AS f;

-- name: workflows_retry
-- Makes new jobs for these workflows, and returns for how many. See the function in sql/functions/jobs.sql.
-- Reads workflow_states. Writes actions, dead_jobs, jobs. Locks the workflows, ids ascending, and an advisory lock, shared. Uses
-- workflow_states_pkey, dead_jobs_pkey, jobs_pkey.
SELECT outbox.retry(%(ids)s::uuid[], %(by)s, %(reason)s);

-- name: workflows_move
-- Moves these workflows to a status, those for which that is a legal change, and returns how many.
-- Reads legal_changes. Writes workflow_states. Locks the workflows, ids ascending. Uses workflow_states_pkey, legal_changes_pkey.
WITH workflow AS MATERIALIZED (
    SELECT w.id, w.pipeline, w.current_status FROM outbox.workflow_states AS w
    WHERE w.id = ANY (%(ids)s::uuid[]) ORDER BY w.id FOR NO KEY UPDATE
), moved AS (
    UPDATE outbox.workflow_states AS w SET current_status = %(to_status)s::text
    FROM workflow
    JOIN unnest(%(ids)s::uuid[], %(statuses)s::text[]) AS seen (id, status)
        ON seen.id = workflow.id AND seen.status = workflow.current_status
    JOIN outbox.legal_changes AS l
        ON l.pipeline = workflow.pipeline AND l.from_status = seen.status AND l.to_status = %(to_status)s::text
    WHERE w.id = workflow.id
    RETURNING w.id
)
SELECT count(*) FROM moved;

-- name: workflows_cancel
-- Cancels these workflows, those that have not ended and whose pipelines have a status for it, and returns how many. See the
-- function in sql/functions/cancel.sql.
-- Reads pipelines, routes, workflow_states. Writes workflow_states. Locks the workflows, ids ascending. Uses workflow_states_pkey,
-- pipelines_pkey, routes_pkey.
WITH workflow AS MATERIALIZED (
    SELECT w.id, w.pipeline, w.entity_id, w.current_status FROM outbox.workflow_states AS w
    WHERE w.id = ANY (%(ids)s::uuid[]) ORDER BY w.id FOR NO KEY UPDATE
)
SELECT count(outbox.cancel(workflow.pipeline, workflow.entity_id, %(by)s, %(reason)s))
FROM workflow
JOIN unnest(%(ids)s::uuid[], %(statuses)s::text[]) AS seen (id, status)
    ON seen.id = workflow.id AND seen.status = workflow.current_status
JOIN outbox.pipelines AS p ON p.pipeline = workflow.pipeline AND p.cancelled IS NOT NULL
JOIN outbox.routes AS r ON r.pipeline = workflow.pipeline AND r.status = workflow.current_status AND NOT r.final;
