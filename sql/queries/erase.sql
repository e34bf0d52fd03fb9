-- Erases workflows.

-- name: erase
-- Erases the data and the texts of a workflow, and returns what went and what can't be reached, as JSON. See the function
-- in sql/functions/erase.sql.
-- Writes workflow_states, state_changes. Locks the workflow, then its reactions, then its blobs. Uses
-- workflow_states_entity_key.
SELECT outbox.erase(%(pipeline)s::text, %(entity)s::text, %(by)s::text, %(reason)s::text)::text;
