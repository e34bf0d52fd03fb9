-- A message that no queue takes waits for a minute beside the log: the relay tries it again by itself.

ALTER TABLE outbox.parked_messages
    ADD COLUMN waits_until timestamptz,
    ADD COLUMN routing_key text COLLATE "C";

-- Which messages a person, or a queue that is there now, has sent again: among many others that stay.
CREATE INDEX parked_messages_to_retry ON outbox.parked_messages (relay, id) WHERE retry;
-- The first waiting message of each routing key, which is tried for all of them.
CREATE INDEX parked_messages_waiting ON outbox.parked_messages (relay, routing_key, id)
    WHERE waits_until IS NOT NULL AND NOT retry;
-- Those whose time is over.
CREATE INDEX parked_messages_by_end ON outbox.parked_messages (relay, waits_until)
    WHERE waits_until IS NOT NULL AND NOT retry;
-- Which earlier messages of a key are here: a key may have many, all of them behind the first one.
DROP INDEX outbox.parked_messages_by_key;
CREATE INDEX parked_messages_by_key ON outbox.parked_messages (relay, key, id) WHERE key IS NOT NULL;
