-- Signals from other systems to a workflow.

-- name: signal_send
-- Sends a signal, unless one with this id was sent before; a workflow that waits for it moves. Returns the workflow's
-- status, whether the signal is new, whether it was taken, and if it was not, what is wrong with its name. See the function in
-- sql/functions/calls.sql.
-- Writes signals, workflow_states. Locks the workflow. Uses signals_are_one_by_id, workflow_states_entity_key.
SELECT s.status, s.created, s.taken,
       CASE WHEN NOT s.taken THEN outbox.signal_unknown(%(pipeline)s::text, %(name)s::text) END
FROM outbox.signal(%(pipeline)s, %(entity)s, %(name)s, %(payload)s::text::jsonb, %(id)s, %(by)s) AS s;
