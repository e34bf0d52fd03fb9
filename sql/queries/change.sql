-- Changes that a person makes: forget a relay, send again what is parked.

-- name: answer_waits
-- Has the COMMIT wait for standbys, though nothing was left to change: it may be so on this server alone.
SELECT outbox.commit_waits();

-- name: relay_forget
-- Removes a relay's name and what it has parked, so that nothing is kept for it any more; a running relay stays.
-- Returns whether it existed, whether it was removed, and how many messages were parked.
-- Writes parked_messages, relays. Uses relays_pkey, parked_messages_pkey.
WITH found AS (
    SELECT r.name FROM outbox.relays AS r WHERE r.name = %(relay)s
), gone AS (
    DELETE FROM outbox.relays AS r
    WHERE r.name = %(relay)s AND (r.owner IS NULL OR r.updated_at < now() - interval '15 seconds')
    RETURNING r.name
), parked AS (
    DELETE FROM outbox.parked_messages AS p USING gone WHERE p.relay = gone.name RETURNING p.id
)
SELECT EXISTS (SELECT FROM found) AS found, EXISTS (SELECT FROM gone) AS gone, (SELECT count(*) FROM parked) AS parked;

-- name: parked_retry
-- Marks parked messages and deliveries for a retry by the relay or consumer that parked them: those with these ids, or
-- (null) all. Returns all those with the ids; for all, only those not marked before. A row that is already marked is
-- left alone, because its relay or consumer may be retrying it.
-- Writes parked_deliveries, parked_messages. Uses parked_messages_pkey, parked_deliveries_pkey.
WITH found AS (
    SELECT p.relay, NULL AS consumer, p.id, p.retry
    FROM outbox.parked_messages AS p
    WHERE %(consumer)s::text IS NULL AND (%(relay)s::text IS NULL OR p.relay = %(relay)s)
    UNION ALL
    SELECT NULL, d.consumer, d.id, d.retry
    FROM outbox.parked_deliveries AS d
    WHERE %(relay)s::text IS NULL AND (%(consumer)s::text IS NULL OR d.consumer = %(consumer)s)
), chosen AS MATERIALIZED (
    SELECT f.relay, f.consumer, f.id
    FROM found AS f
    WHERE CASE WHEN %(ids)s::bigint[] IS NULL THEN NOT f.retry ELSE f.id = ANY (%(ids)s::bigint[]) END
), messages AS (
    UPDATE outbox.parked_messages AS p SET retry = true
    FROM chosen AS c WHERE p.relay = c.relay AND p.id = c.id AND NOT p.retry
), deliveries AS (
    UPDATE outbox.parked_deliveries AS d SET retry = true
    FROM chosen AS c WHERE d.consumer = c.consumer AND d.id = c.id AND NOT d.retry
)
SELECT c.relay, c.consumer, c.id FROM chosen AS c ORDER BY c.id, c.consumer NULLS FIRST, c.relay;
