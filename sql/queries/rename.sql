-- How `outbox deploy` renames statuses: in this order, each with the same parameters, in the transaction of the deploy, in
-- which nobody else changes workflows. `names` is a JSON object: each old name with the new one.

-- name: renaming_begins
-- Tells the trigger which changes of this transaction are renames.
-- Writes pipelines. Uses pipelines_pkey.
UPDATE outbox.pipelines AS p SET renaming = %(names)s::text::jsonb WHERE p.pipeline = %(pipeline)s;

-- name: questions_rename
-- Renames where the answers to open questions lead to. The trigger renames where they were asked.
-- Writes approvals. Uses approvals_open.
UPDATE outbox.approvals AS a
SET options = (SELECT jsonb_object_agg(o.key, coalesce(%(names)s::text::jsonb ->> o.value, o.value))
               FROM jsonb_each_text(a.options) AS o (key, value))
WHERE a.pipeline = %(pipeline)s AND a.ended_at IS NULL
  AND EXISTS (SELECT FROM jsonb_each_text(a.options) AS o (key, value) WHERE o.value = ANY (%(olds)s::text[]));

-- name: deadlines_rename
-- Renames where deadlines lead to.
-- Writes jobs. Uses jobs_with_deadline.
UPDATE outbox.jobs AS j SET on_deadline = %(names)s::text::jsonb ->> j.on_deadline
WHERE j.pipeline = %(pipeline)s AND j.deadline IS NOT NULL AND j.on_deadline = ANY (%(olds)s::text[]);

-- name: waits_rename
-- Renames where waits for signals and children lead to.
-- Reads workflow_states. Writes waits. Uses workflow_states_pkey.
UPDATE outbox.waits AS w
SET to_status = coalesce(%(names)s::text::jsonb ->> w.to_status, w.to_status),
    on_failure = coalesce(%(names)s::text::jsonb ->> w.on_failure, w.on_failure)
FROM outbox.workflow_states AS s
WHERE s.id = w.workflow_id AND s.pipeline = %(pipeline)s
  AND (w.to_status = ANY (%(olds)s::text[]) OR w.on_failure = ANY (%(olds)s::text[]));

-- name: failures_rename
-- Renames the statuses in which a child of this pipeline has failed for a parent that waits. A child of another pipeline may
-- have the old name, too: it stays beside the new one.
-- Reads children, workflow_states. Writes waits. Uses children_by_parent, workflow_states_pkey.
UPDATE outbox.waits AS w
SET failed = w.failed || ARRAY(SELECT n.value FROM jsonb_each_text(%(names)s::text::jsonb) AS n (key, value)
                               WHERE n.key = ANY (w.failed) ORDER BY n.value)
WHERE w.failed && %(olds)s::text[] AND EXISTS (
    SELECT FROM outbox.children AS c JOIN outbox.workflow_states AS s ON s.id = c.child_id
    WHERE c.parent_id = w.workflow_id AND s.pipeline = %(pipeline)s);

-- name: cancellations_rename
-- Renames where children of this pipeline move when their parent ends first.
-- Reads workflow_states. Writes children. Uses workflow_states_pkey.
UPDATE outbox.children AS c SET cancel_to = %(names)s::text::jsonb ->> c.cancel_to
FROM outbox.workflow_states AS s
WHERE s.id = c.child_id AND s.pipeline = %(pipeline)s AND c.cancel_to = ANY (%(olds)s::text[]);

-- name: workflows_rename
-- Renames the status of the workflows. The trigger writes their history, and renames it in what belongs to them.
-- Writes workflow_states. Uses workflow_states_entity_key.
UPDATE outbox.workflow_states AS w SET current_status = %(names)s::text::jsonb ->> w.current_status
WHERE w.pipeline = %(pipeline)s AND w.current_status = ANY (%(olds)s::text[]);

-- name: renaming_ends
-- Tells the trigger that what this transaction changes from now on is no rename.
-- Writes pipelines. Uses pipelines_pkey.
UPDATE outbox.pipelines AS p SET renaming = NULL WHERE p.pipeline = %(pipeline)s;
