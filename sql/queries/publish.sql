-- Messages that an application publishes by itself.

-- name: message_write
-- Writes a message, and returns its id. The id is made first: who may write messages need not see them.
-- Writes messages.
WITH made AS MATERIALIZED (
    SELECT outbox.uuid7() AS message_id
), written AS (
    INSERT INTO outbox.messages (message_id, topic, key, payload, headers)
    SELECT made.message_id, %(topic)s, %(key)s, %(payload)s::text::jsonb, %(headers)s::text::jsonb FROM made
)
SELECT made.message_id::text FROM made;
