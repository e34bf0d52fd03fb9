-- Cancels workflows.

-- name: cancel
-- Cancels a workflow, and returns its status. See the function in sql/functions/cancel.sql.
-- Writes workflow_states. Locks the workflow. Uses workflow_states_entity_key.
SELECT outbox.cancel(%(pipeline)s, %(entity)s, %(by)s, %(reason)s);
