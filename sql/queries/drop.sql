-- Drops a pipeline.

-- name: pipelines_to_drop
-- Returns the pipeline and its reactions, with how many workflows each has by the counters, and the pipeline that reacts
-- with it, if its routes name it.
-- Reads pipelines, routes, status_counts. Uses pipelines_pkey, routes_pkey.
SELECT p.pipeline, (SELECT coalesce(sum(c.workflows), 0)::bigint FROM outbox.status_counts AS c WHERE c.pipeline = p.pipeline),
       CASE WHEN EXISTS (SELECT FROM outbox.routes AS r
                         WHERE r.pipeline = p.reaction_of AND p.pipeline = ANY (
                             SELECT r.pipeline || '/' || n.name FROM unnest(r.reactions) AS n (name)))
            THEN p.reaction_of END
FROM outbox.pipelines AS p
WHERE p.pipeline = %(pipeline)s OR p.reaction_of = %(pipeline)s
ORDER BY p.pipeline <> %(pipeline)s, p.pipeline;

-- name: retention_begins
-- Lets this transaction delete history, and has its COMMIT wait for standbys.
SELECT set_config('outbox.retention', 'on', true), outbox.commit_waits();

-- name: workflows_lock
-- Locks some workflows of a pipeline, and returns their ids as one array. Their history is deleted by a later statement,
-- because this one may wait for a change, and doesn't see the row of history that it commits.
-- Reads workflow_states. Locks workflows, ids ascending. Uses workflow_states_entity_key, workflow_states_pkey.
WITH first AS MATERIALIZED (
    SELECT w.id FROM outbox.workflow_states AS w WHERE w.pipeline = %(pipeline)s ORDER BY w.entity_id LIMIT %(limit)s
)
SELECT array_agg(locked.id) FROM (
    SELECT w.id FROM outbox.workflow_states AS w
    WHERE w.id = ANY (ARRAY(SELECT first.id FROM first)) ORDER BY w.id FOR UPDATE
) AS locked;

-- name: workflows_delete
-- Deletes these workflows and, if wanted, their history. Returns how many workflows.
-- Writes actions, state_changes, workflow_states. Uses workflow_states_pkey, actions_by_workflow, state_changes_pkey.
WITH history AS (
    DELETE FROM outbox.state_changes AS c WHERE %(history)s AND c.workflow_id = ANY (%(ids)s::uuid[])
), actions AS (
    DELETE FROM outbox.actions AS a WHERE %(history)s AND a.workflow_id = ANY (%(ids)s::uuid[])
), gone AS (
    DELETE FROM outbox.workflow_states AS w WHERE w.id = ANY (%(ids)s::uuid[]) RETURNING 1
)
SELECT count(*) FROM gone;

-- name: pipelines_delete
-- Deletes these pipelines, with what the trigger deletes of them.
-- Writes pipelines. Uses pipelines_pkey.
DELETE FROM outbox.pipelines AS p WHERE p.pipeline = ANY (%(pipelines)s::text[]);
