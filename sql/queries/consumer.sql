-- What a consumer does besides.

-- name: deliveries_to_retry
-- Returns parked deliveries that a person wants to be tried again, oldest first.
-- Reads parked_deliveries. Uses parked_deliveries_to_retry.
SELECT p.id, p.topic, p.body, p.headers, p.message_id
FROM outbox.parked_deliveries AS p
WHERE p.consumer = %(consumer)s AND p.retry
ORDER BY p.id LIMIT 100;
