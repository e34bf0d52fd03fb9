-- Step 6: what a delivery needs besides the inbox and its handler: counting its attempts, and parking what can't be
-- handled.

-- name: delivery_begun
-- Returns how many counted attempts a message has had.
-- Reads delivery_attempts. Uses delivery_attempts_pkey.
SELECT a.attempts FROM outbox.delivery_attempts AS a
WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid;

-- name: delivery_begin
-- Counts an attempt at a message before it starts, so that an attempt that kills its process is counted, too. `first`
-- is the number of the first counted attempt.
-- Writes delivery_attempts. Uses delivery_attempts_pkey.
INSERT INTO outbox.delivery_attempts AS a (consumer, message_id, attempts)
VALUES (%(consumer)s, %(message_id)s::uuid, %(first)s)
ON CONFLICT (consumer, message_id) DO UPDATE SET attempts = a.attempts + 1, at = now()
RETURNING a.attempts;

-- name: delivery_mark
-- Marks the transaction that a handler is given as the delivery's own, and limits how long it may be idle: a process
-- that froze must not keep others from the message for ever.
SELECT pg_catalog.set_config('outbox.delivery', %(mark)s, true),
       pg_catalog.set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true);

-- name: delivery_mark_read
-- Returns the mark; null or empty if the handler has ended its transaction.
SELECT pg_catalog.current_setting('outbox.delivery', true);

-- name: delivery_settle
-- Deletes the attempts of a message that is now handled, and its parked copy, in the handler's transaction.
-- Writes delivery_attempts, parked_deliveries. Uses delivery_attempts_pkey, parked_deliveries_content_key,
-- parked_deliveries_pkey.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
DELETE FROM outbox.parked_deliveries AS p
WHERE p.consumer = %(consumer)s AND (p.digest = %(digest)s OR p.id = %(parked)s::bigint);

-- name: delivery_park
-- Parks a delivery that can't be handled, with the reason. If a person retries it, its attempts are counted from the
-- start. The retry mark stays if the message is delivered again in the meantime.
-- Writes delivery_attempts, parked_deliveries. Uses delivery_attempts_pkey, parked_deliveries_content_key.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
INSERT INTO outbox.parked_deliveries AS p (consumer, queue, message_id, topic, body, headers, reason, digest)
VALUES (%(consumer)s, %(queue)s, %(stated_id)s, %(topic)s, %(body)s, %(headers)s::jsonb, %(reason)s, %(digest)s)
ON CONFLICT (consumer, digest) DO UPDATE
SET reason = excluded.reason, deliveries = p.deliveries + 1, parked_at = now();

-- name: delivery_park_again
-- Stores a parked delivery's new reason after another attempt has failed. It finds the delivery by its id: the stored
-- text was cleaned, so its digest differs from that of what arrived.
-- Writes delivery_attempts, parked_deliveries. Uses delivery_attempts_pkey, parked_deliveries_pkey.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
UPDATE outbox.parked_deliveries AS p
SET reason = %(reason)s, deliveries = p.deliveries + 1, retry = false, parked_at = now()
WHERE p.id = %(parked)s::bigint;
