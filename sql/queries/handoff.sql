-- Turns messages into workflows in another database: its inbox and its workflows, in one transaction.

-- name: handoff_pipeline
-- Returns whether the pipeline is deployed there.
-- Reads pipelines. Uses pipelines_pkey.
SELECT EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = %(pipeline)s);

-- name: handoff
-- Records the new ids, and starts a workflow for each. Returns the numbers of those that could not be started, with the
-- reason: refused by the inbox ('old', 'new'), or the entity already has a workflow ('there'). It records ids in order,
-- so that two processes that hand over the same ids don't deadlock.
-- Reads inbox_floor, pipelines. Writes inbox, workflow_states. Uses pipelines_pkey, workflow_states_entity_key.
WITH given AS MATERIALIZED (
    SELECT g.n, g.message_id, g.entity_id, g.metadata,
           CASE WHEN t.sent_at < outbox.inbox_oldest() THEN 'old'
                WHEN t.sent_at > clock_timestamp() + interval '1 day' THEN 'new' END AS refused
    FROM unnest(%(message_ids)s::uuid[], %(entities)s::text[], %(metadata)s::text[])
        WITH ORDINALITY AS g (message_id, entity_id, metadata, n)
    CROSS JOIN LATERAL (SELECT outbox.uuid7_time(g.message_id) AS sent_at) AS t
), recorded AS (
    INSERT INTO outbox.inbox (consumer, message_id)
    SELECT %(consumer)s, g.message_id FROM given AS g WHERE g.refused IS NULL ORDER BY g.message_id
    ON CONFLICT DO NOTHING
    RETURNING message_id
), fresh AS MATERIALIZED (
    SELECT g.n, g.entity_id, g.metadata, row_number() OVER (PARTITION BY g.entity_id ORDER BY g.n) AS turn
    FROM given AS g JOIN recorded AS r ON r.message_id = g.message_id
), started AS (
    INSERT INTO outbox.workflow_states (pipeline, entity_id, current_status, metadata)
    SELECT p.pipeline, f.entity_id, p.initial_status, outbox.data_stamped(coalesce(f.metadata, '{}')::jsonb, p.plain)
    FROM (SELECT set_config('outbox.of_code', statement_timestamp()::text, true)) AS me
    CROSS JOIN fresh AS f
    JOIN outbox.pipelines AS p ON p.pipeline = %(pipeline)s
    WHERE f.turn = 1
    ORDER BY f.n
    ON CONFLICT (pipeline, entity_id) DO NOTHING
    RETURNING entity_id
)
SELECT g.n, g.refused FROM given AS g WHERE g.refused IS NOT NULL
UNION ALL
SELECT f.n, 'there' FROM fresh AS f
WHERE f.turn > 1 OR NOT EXISTS (SELECT FROM started AS s WHERE s.entity_id = f.entity_id);

-- name: handoff_unrecord
-- Forgets the ids of messages that had no effect after all, in the transaction that recorded them, because a person may
-- have them handed over again.
-- Writes inbox.
DELETE FROM outbox.inbox AS i WHERE i.consumer = %(consumer)s AND i.message_id = ANY (%(message_ids)s::uuid[]);
