-- What an attempt leaves for the next one: results of calls, and its progress. What it may ask: children and answers.

-- name: checkpoint_read
-- Returns the result kept under this key of this work, or the blob that it is.
-- Reads checkpoints. Uses checkpoints_pkey.
SELECT c.function, c.result::text, encode(c.blob, 'hex')
FROM outbox.checkpoints AS c
WHERE c.workflow_id = %(id)s::uuid AND c.entered = %(entered)s AND c.stage = %(stage)s AND c.key = %(key)s;

-- name: checkpoint_write
-- Keeps a result, if this attempt still holds its job and no result is kept under this key. Returns whether the job is
-- held, and the result as later attempts read it, if it was kept. It can be repeated.
-- Reads jobs. Writes checkpoints. Locks the job, shared. Uses jobs_pkey, checkpoints_pkey.
WITH held AS MATERIALIZED (
    SELECT j.workflow_id FROM outbox.jobs AS j
    WHERE j.workflow_id = %(id)s::uuid AND j.id = %(job)s AND j.owner = %(worker)s AND j.attempt = %(attempt)s
    FOR SHARE
), made AS (
    INSERT INTO outbox.checkpoints (workflow_id, stage, entered, key, function, result, attempt)
    SELECT held.workflow_id, %(stage)s, %(entered)s, %(key)s, %(function)s, %(result)s::text::jsonb, %(attempt)s FROM held
    ON CONFLICT DO NOTHING
    RETURNING result
)
SELECT EXISTS (SELECT FROM held), (SELECT made.result::text FROM made);

-- name: children_read
-- Returns the children of a workflow in a pipeline, whether each has ended, and their data.
-- Reads children, routes, workflow_states. Uses children_by_parent, workflow_states_pkey, routes_pkey.
SELECT w.id::text, w.entity_id, w.current_status, coalesce(r.final, false), w.metadata::text
FROM outbox.children AS c
JOIN outbox.workflow_states AS w ON w.id = c.child_id
LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
WHERE c.parent_id = %(id)s::uuid AND w.pipeline = %(pipeline)s
ORDER BY w.entity_id LIMIT %(limit)s;

-- name: answers_read
-- Returns how the questions have ended that a workflow has waited for last. Those about effects are the engine's own.
-- Reads approvals. Uses approvals_by_workflow.
SELECT a.name, a.question, a.ended, a.decision, a.decided_by, a.reason,
       CASE WHEN a.own_data THEN coalesce(a.edited, a.data)::text END, a.edited IS NOT NULL
FROM outbox.approvals AS a
WHERE a.workflow_id = %(id)s::uuid AND a.ended_at IS NOT NULL AND a.effect IS NULL
  AND a.version = (SELECT max(l.version) FROM outbox.approvals AS l WHERE l.workflow_id = %(id)s::uuid AND l.effect IS NULL)
ORDER BY a.id;

-- name: answers_before
-- Returns how the questions have ended that this stage has asked, and that the workflow has waited for directly before it came
-- to its status with the version `entered`. `back` is how many waits are skipped: after each, the stage has only asked again.
-- A status that was renamed is the same one, and old history may be deleted.
-- Reads approvals, state_changes. Uses approvals_by_workflow, state_changes_pkey.
SELECT a.name, a.question, a.ended, a.decision, a.decided_by, a.reason,
       CASE WHEN a.own_data THEN coalesce(a.edited, a.data)::text END, a.edited IS NOT NULL
FROM outbox.approvals AS a
WHERE a.workflow_id = %(id)s::uuid AND a.ended_at IS NOT NULL AND a.effect IS NULL AND a.stage = %(stage)s::text
  AND a.version = (SELECT DISTINCT l.version FROM outbox.approvals AS l
                   WHERE l.workflow_id = %(id)s::uuid AND l.effect IS NULL AND l.version < %(entered)s::bigint
                   ORDER BY l.version DESC OFFSET %(back)s::integer LIMIT 1)
  AND (SELECT count(*) FROM outbox.state_changes AS c
       WHERE c.workflow_id = a.workflow_id AND c.version > a.version AND c.version < %(entered)s::bigint
         AND c.reason IS DISTINCT FROM 'renamed') <= 2 * %(back)s::integer
ORDER BY a.id;

-- name: progress_write
-- Writes the progress of those jobs that this worker still holds.
-- Writes jobs. Uses jobs_pkey.
UPDATE outbox.jobs AS j
SET progress = o.progress
FROM unnest(%(ids)s::uuid[], %(jobs)s::bigint[], %(attempts)s::integer[], %(progress)s::text[]) AS o (id, job, attempt, progress)
WHERE j.workflow_id = o.id AND j.id = o.job AND j.owner = %(worker)s::integer AND j.attempt = o.attempt;
