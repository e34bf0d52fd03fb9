-- What other systems tell a workflow.

-- name: signal_send
-- Writes a signal, unless it was sent before by this id; the workflow that waits for it moves. Locks the workflow.
INSERT INTO outbox.signals (pipeline, entity_id, name, payload, signal_id)
VALUES (%(pipeline)s, %(entity)s, %(name)s, %(payload)s::text::jsonb, %(id)s)
RETURNING id;

-- name: signal_sent
-- Where the workflow stands, and whether this signal was taken: the one with this number, or that which has its id.
SELECT w.current_status, s.taken_at IS NOT NULL
FROM outbox.workflow_states AS w
JOIN outbox.signals AS s ON s.workflow_id = w.id AND s.name = %(name)s
    AND (s.id = %(number)s::bigint OR %(number)s::bigint IS NULL AND s.signal_id = %(id)s)
WHERE w.pipeline = %(pipeline)s AND w.entity_id = %(entity)s;
