-- Step 6: what a delivery needs beside the inbox and its handler: attempts are counted, what can't be taken is parked.

-- name: delivery_begun
-- How often a message was begun, as far as it was counted.
SELECT a.attempts FROM outbox.delivery_attempts AS a
WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid;

-- name: delivery_begin
-- Counts an attempt at a message before it begins, so that what kills its process is counted, too; `first` is the number
-- of the first that is counted. Writes delivery_attempts.
INSERT INTO outbox.delivery_attempts AS a (consumer, message_id, attempts)
VALUES (%(consumer)s, %(message_id)s::uuid, %(first)s)
ON CONFLICT (consumer, message_id) DO UPDATE SET attempts = a.attempts + 1, at = now()
RETURNING a.attempts;

-- name: delivery_mark
-- Marks the transaction that a handler is given as the delivery's own, and bounds how long it may sit idle: a process
-- that froze must not keep others from the message for ever.
SELECT set_config('outbox.delivery', %(mark)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s::text, true);

-- name: delivery_mark_read
-- Null or empty if the handler ended the transaction that it was given.
SELECT current_setting('outbox.delivery', true);

-- name: delivery_settle
-- Forgets the troubles of a message that is handled now, in the handler's transaction.
-- Writes delivery_attempts, parked_deliveries.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
DELETE FROM outbox.parked_deliveries AS p
WHERE p.consumer = %(consumer)s AND (p.digest = %(digest)s OR p.id = %(parked)s::bigint);

-- name: delivery_park
-- Keeps what can't be taken, with the reason; its attempts count anew if somebody wants it tried again. That somebody
-- does is kept, too, when it is delivered once more meanwhile. Writes parked_deliveries, delivery_attempts.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
INSERT INTO outbox.parked_deliveries AS p (consumer, queue, message_id, topic, body, headers, reason, digest)
VALUES (%(consumer)s, %(queue)s, %(stated_id)s, %(topic)s, %(body)s, %(headers)s::jsonb, %(reason)s, %(digest)s)
ON CONFLICT (consumer, digest) DO UPDATE
SET reason = excluded.reason, deliveries = p.deliveries + 1, parked_at = now();

-- name: delivery_park_again
-- Gives a parked delivery its new reason when it was tried again for nothing. By its id: what is stored is cleaned, and
-- has not the digest of what came. Writes parked_deliveries, delivery_attempts.
WITH counted AS (
    DELETE FROM outbox.delivery_attempts AS a WHERE a.consumer = %(consumer)s AND a.message_id = %(message_id)s::uuid
)
UPDATE outbox.parked_deliveries AS p
SET reason = %(reason)s, deliveries = p.deliveries + 1, retry = false, parked_at = now()
WHERE p.id = %(parked)s::bigint;
