-- Step 1: starts workflows in the caller's own transaction.

-- name: workflow_submit
-- Starts a workflow, or finds the one that the entity has, and returns its id and status, and whether it is new. No id: the
-- pipeline is not deployed. See the function in sql/functions/calls.sql.
-- Reads pipelines. Writes workflow_states. Uses workflow_states_entity_key, pipelines_pkey.
SELECT s.id::text, s.status, s.created
FROM outbox.submit_of_code(%(pipeline)s::text, %(entity)s::text, %(metadata)s::text) AS s;

-- name: workflow_submit_by_name
-- Starts a workflow, or finds the one that the entity has, with data that the pipeline's code has not seen: the database checks it.
-- See the function in sql/functions/calls.sql.
-- Reads pipelines. Writes workflow_states. Uses workflow_states_entity_key, pipelines_pkey.
SELECT s.id::text, s.status, s.created
FROM outbox.submit(%(pipeline)s::text, %(entity)s::text, %(metadata)s::jsonb, %(by)s::text, %(reason)s::text) AS s;

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

-- name: pipeline_is_deployed
-- Returns whether a pipeline is deployed.
-- Reads pipelines. Uses pipelines_pkey.
SELECT EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s);
