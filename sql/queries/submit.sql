-- Step 1: workflows start in the caller's own transaction.

-- name: workflows_submit
-- Starts the workflows that are new, and returns these; the trigger adds history and the first job.
-- Writes workflow_states. Uses workflow_states_entity_key.
INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
SELECT p.pipeline, s.entity_id, p.initial_status, s.metadata::jsonb
FROM unnest(%(entities)s::text[], %(metadata)s::text[]) WITH ORDINALITY AS s (entity_id, metadata, n)
JOIN outbox.pipelines AS p ON p.pipeline = %(pipeline)s
ORDER BY s.n
ON CONFLICT (pipeline, entity_id) DO NOTHING
RETURNING id, entity_id, current_status;

-- name: workflows_submit_count
-- The same for bulk, where only the number is wanted.
WITH started AS (
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
    SELECT p.pipeline, s.entity_id, p.initial_status, s.metadata::jsonb
    FROM unnest(%(entities)s::text[], %(metadata)s::text[]) WITH ORDINALITY AS s (entity_id, metadata, n)
    JOIN outbox.pipelines AS p ON p.pipeline = %(pipeline)s
    ORDER BY s.n
    ON CONFLICT (pipeline, entity_id) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM started;

-- name: workflows_find
-- The workflows that are there already. A statement of its own: it must see what the one before ran into.
-- Reads workflow_states. Uses workflow_states_entity_key.
SELECT w.id, w.entity_id, w.current_status
FROM outbox.workflow_states AS w
WHERE w.pipeline = %(pipeline)s AND w.entity_id = ANY (%(entities)s::text[]);

-- name: pipeline_is_deployed
SELECT EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s);
