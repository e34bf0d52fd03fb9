-- Step 1: starts workflows in the caller's own transaction.

-- name: workflows_submit
-- Starts the workflows that are new, and returns them; the trigger adds history and the first job.
-- Reads pipelines. Writes workflow_states. Uses workflow_states_entity_key, pipelines_pkey.
WITH me AS MATERIALIZED (
    SELECT set_config('outbox.of_code', statement_timestamp()::text, true)
)
INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
SELECT p.pipeline, s.entity_id, p.initial_status, outbox.data_of_code(s.metadata::jsonb, p.plain)
FROM me, unnest(%(entities)s::text[], %(metadata)s::text[]) WITH ORDINALITY AS s (entity_id, metadata, n)
JOIN outbox.pipelines AS p ON p.pipeline = %(pipeline)s
ORDER BY s.n
ON CONFLICT (pipeline, entity_id) DO NOTHING
RETURNING id::text, entity_id, current_status;

-- name: workflows_submit_count
-- Starts the workflows that are new, and returns how many: for bulk.
-- Reads pipelines. Writes workflow_states. Uses workflow_states_entity_key, pipelines_pkey.
WITH me AS MATERIALIZED (
    SELECT set_config('outbox.of_code', CASE WHEN %(of_code)s::boolean THEN statement_timestamp()::text ELSE '' END, true)
), started AS (
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
    SELECT p.pipeline, s.entity_id, p.initial_status,
           CASE WHEN %(of_code)s::boolean THEN outbox.data_of_code(s.metadata::jsonb, p.plain)
                ELSE s.metadata::jsonb END
    FROM me, unnest(%(entities)s::text[], %(metadata)s::text[]) WITH ORDINALITY AS s (entity_id, metadata, n)
    JOIN outbox.pipelines AS p ON p.pipeline = %(pipeline)s
    ORDER BY s.n
    ON CONFLICT (pipeline, entity_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM started;

-- name: workflows_find
-- Returns the workflows that already exist. It is a separate statement because it must see what the one before has run
-- into.
-- Reads workflow_states. Uses workflow_states_entity_key.
SELECT w.id::text, w.entity_id, w.current_status
FROM outbox.workflow_states AS w
WHERE w.pipeline = %(pipeline)s AND w.entity_id = ANY (%(entities)s::text[]);

-- name: pipeline_is_deployed
-- Returns whether a pipeline is deployed.
-- Reads pipelines. Uses pipelines_pkey.
SELECT EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s);
