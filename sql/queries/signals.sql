-- Signals from other systems to a workflow.

-- name: signal_send
-- Writes a signal, unless one with this id was sent before. A workflow that waits for it moves.
-- Writes signals. Locks the workflow. Uses signals_are_one_by_id, workflow_states_entity_key.
INSERT INTO outbox.signals (pipeline, entity_id, name, payload, signal_id)
VALUES (%(pipeline)s, %(entity)s, %(name)s, %(payload)s::text::jsonb, %(id)s)
RETURNING id;

-- name: signal_sent
-- Returns the workflow's status, and whether this signal was taken: the one with this number, or the one with this id.
-- Reads signals, workflow_states. Uses workflow_states_entity_key, signals_are_one_by_id.
SELECT w.current_status, s.taken_at IS NOT NULL
FROM outbox.workflow_states AS w
JOIN outbox.signals AS s ON s.workflow_id = w.id AND s.name = %(name)s
    AND (s.id = %(number)s::bigint OR %(number)s::bigint IS NULL AND s.signal_id = %(id)s)
WHERE w.pipeline = %(pipeline)s AND w.entity_id = %(entity)s;
