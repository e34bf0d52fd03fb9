-- What a test finds in the database.

-- name: messages_written
-- Returns the messages that are in the log, of one topic or (null) of all, in the order in which they were written.
-- Reads messages.
SELECT m.topic, m.key, m.payload::text, m.headers::text
FROM outbox.messages AS m
WHERE %(topic)s::text IS NULL OR m.topic = %(topic)s::text
ORDER BY m.id;
