-- What a consumer does besides handling messages.

-- name: deliveries_to_retry
-- Returns parked deliveries that a person wants to retry, oldest first.
-- Reads parked_deliveries. Uses parked_deliveries_to_retry.
SELECT p.id, p.topic, p.body, p.headers, p.message_id
FROM outbox.parked_deliveries AS p
WHERE p.consumer = %(consumer)s AND p.retry
ORDER BY p.id LIMIT 100;
