-- Signals from other systems to a workflow.

-- name: signal_send
-- Sends a signal, unless one with this id was sent before; a workflow that waits for it moves. Returns the workflow's
-- status, whether the signal is new, and whether it was taken. See the function in sql/functions/calls.sql.
-- Writes signals, workflow_states. Locks the workflow. Uses signals_are_one_by_id, workflow_states_entity_key.
SELECT s.status, s.created, s.taken
FROM outbox.signal(%(pipeline)s, %(entity)s, %(name)s, %(payload)s::text::jsonb, %(id)s, %(by)s) AS s;
