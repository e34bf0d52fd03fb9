-- What a consumer does on the side.

-- name: deliveries_to_retry
-- Parked deliveries that a person wants tried again. Uses parked_deliveries_to_retry.
SELECT p.id, p.topic, p.body, p.headers, p.message_id
FROM outbox.parked_deliveries AS p
WHERE p.consumer = %(consumer)s AND p.retry
ORDER BY p.id LIMIT 100;
