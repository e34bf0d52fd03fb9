-- The books of messages that were sent to RabbitMQ. See books.sql.

-- promise: one effect at the consumer for each message
SELECT w.entity_id, e.changes || ' times enriched, ' || m.effects || ' effects'
FROM outbox.workflow_states AS w
CROSS JOIN LATERAL (
    SELECT count(*) AS changes FROM outbox.state_changes AS s
    WHERE s.workflow_id = w.id AND s.to_status = 'ENRICHED'
) AS e
CROSS JOIN LATERAL (SELECT count(*) AS effects FROM demo_crm.enriched AS c WHERE c.entity_id = w.entity_id) AS m
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
  AND m.effects <> e.changes;

-- promise: no message was parked on its way
SELECT p.topic, p.reason FROM outbox.parked_messages AS p
JOIN outbox.workflow_states AS w ON w.id = p.workflow_id
WHERE w.pipeline = 'posts' AND starts_with(w.entity_id, %(run)s)
UNION ALL
SELECT p.topic, p.reason FROM outbox.parked_deliveries AS p
WHERE p.consumer = 'outbox_demo';
