-- Changes the status of a workflow by hand.

-- name: move
-- Changes a workflow's status, and returns the status that it then has. See the function in sql/functions/calls.sql.
-- Writes workflow_states. Locks the workflow. Uses workflow_states_entity_key.
SELECT outbox.move(%(pipeline)s, %(entity)s, %(status)s, %(by)s, %(reason)s);
