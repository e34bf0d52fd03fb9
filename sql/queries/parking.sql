-- What a relay could not send: it is parked for a person, or it waits for a queue that takes it. A waiting message has
-- `waits_until`. It was returned and has the routing key that no queue takes; or, in strict mode, it has none and waits
-- behind an earlier message of its key.

-- name: parked_keys
-- Returns which of these keys have a parked message, behind which later messages of the key are parked in strict mode;
-- and whether all that a key has here will go out by itself. A key may have very many here, so it asks for one of each
-- kind, by LIMIT, since Postgres may answer EXISTS by one reading of the whole table.
-- Reads parked_messages. Uses parked_messages_by_key, parked_messages_stopping.
SELECT k.key, (
    SELECT false FROM outbox.parked_messages AS s
    WHERE s.relay = %(name)s AND s.key = k.key AND s.waits_until IS NULL AND NOT s.retry
    LIMIT 1) IS NULL
FROM unnest(%(keys)s::text[]) AS k (key)
CROSS JOIN LATERAL (
    SELECT FROM outbox.parked_messages AS p WHERE p.relay = %(name)s AND p.key = k.key LIMIT 1) AS any_of_it;

-- name: parked_waiting
-- Returns whether any message waits that is not to be sent again already.
-- Reads parked_messages. Uses parked_messages_by_end.
SELECT EXISTS (
    SELECT FROM outbox.parked_messages AS p WHERE p.relay = %(name)s AND p.waits_until IS NOT NULL AND NOT p.retry);

-- name: parked_probes
-- Returns for each routing key behind `after` the first message that waits: it is tried for all of them. In strict mode
-- none before an earlier one of its key.
-- Reads parked_messages. Uses parked_messages_waiting, parked_messages_pkey, parked_messages_by_key.
WITH RECURSIVE first AS (
    (SELECT p.routing_key, p.id FROM outbox.parked_messages AS p
     WHERE p.relay = %(name)s AND p.waits_until IS NOT NULL AND NOT p.retry
       AND (p.routing_key, p.id) > (%(after)s, %(after_id)s)
     ORDER BY p.routing_key, p.id LIMIT 1)
    UNION ALL
    SELECT n.routing_key, n.id
    FROM first AS f CROSS JOIN LATERAL (
        SELECT p.routing_key, p.id FROM outbox.parked_messages AS p
        WHERE p.relay = %(name)s AND p.waits_until IS NOT NULL AND NOT p.retry
          AND (p.routing_key, p.id) > (f.routing_key, 9223372036854775807)
        ORDER BY p.routing_key, p.id LIMIT 1) AS n
)
SELECT p.id, p.message_id::text, p.topic, p.key, p.payload::text, p.headers::text,
       greatest(least(p.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00'), f.routing_key
FROM (SELECT first.routing_key, first.id FROM first LIMIT %(limit)s) AS f
JOIN outbox.parked_messages AS p ON p.relay = %(name)s AND p.id = f.id
WHERE NOT %(strict)s OR (
    SELECT false FROM outbox.parked_messages AS e WHERE e.relay = %(name)s AND e.key = p.key AND e.id < p.id LIMIT 1) IS NULL
ORDER BY f.routing_key;

-- name: parked_to_retry
-- Returns parked messages that a person, or a queue that takes them now, wants to be sent again, oldest first; in strict
-- mode none before an earlier one of its key.
-- Reads parked_messages. Uses parked_messages_to_retry, parked_messages_by_key.
SELECT p.id, p.message_id::text, p.topic, p.key, p.payload::text, p.headers::text,
       greatest(least(p.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00')
FROM outbox.parked_messages AS p
WHERE p.relay = %(name)s AND p.retry
  AND NOT (%(strict)s AND EXISTS (
      SELECT FROM outbox.parked_messages AS e
      WHERE e.relay = p.relay AND e.key = p.key AND e.id < p.id AND NOT e.retry))
ORDER BY p.id LIMIT %(limit)s;

-- name: parked_settle
-- Removes what was sent; what failed again stays with its new reason, and waits as long as it did before. With a message
-- that was sent go those that wait for the same: of its routing key, or behind it.
-- Writes parked_messages. Uses parked_messages_pkey, parked_messages_waiting, parked_messages_by_key.
WITH sent AS (
    DELETE FROM outbox.parked_messages AS p WHERE p.relay = %(name)s AND p.id = ANY (%(sent)s::bigint[])
    RETURNING p.routing_key, p.key
), failed AS (
    UPDATE outbox.parked_messages AS p
    SET retry = false, reason = f.reason, parked_at = now(), routing_key = coalesce(f.routing_key, p.routing_key),
        waits_until = CASE
            WHEN p.waits_until IS NULL THEN NULL
            -- It is refused: no queue would change that.
            WHEN f.routing_key IS NULL AND f.waits IS NULL THEN NULL
            -- It waited behind another until now: its own time begins.
            WHEN p.routing_key IS NULL AND f.routing_key IS NOT NULL THEN now() + make_interval(secs => coalesce(f.waits, 0))
            ELSE p.waits_until END
    FROM unnest(%(ids)s::bigint[], %(reasons)s::text[], %(routing_keys)s::text[], %(waits)s::float8[])
        AS f (id, reason, routing_key, waits)
    WHERE p.relay = %(name)s AND p.id = f.id
), same_route AS (
    UPDATE outbox.parked_messages AS p SET retry = true
    WHERE p.relay = %(name)s AND p.waits_until IS NOT NULL AND NOT p.retry
      AND p.routing_key IN (SELECT s.routing_key FROM sent AS s)
      AND p.id <> ALL (%(sent)s::bigint[]) AND p.id <> ALL (%(ids)s::bigint[])
), behind AS (
    UPDATE outbox.parked_messages AS p SET retry = true
    WHERE p.relay = %(name)s AND p.waits_until IS NOT NULL AND NOT p.retry
      AND p.routing_key IS NULL AND p.key IN (SELECT s.key FROM sent AS s)
      AND p.id <> ALL (%(sent)s::bigint[]) AND p.id <> ALL (%(ids)s::bigint[])
)
SELECT count(*) FROM sent;

-- name: parked_expire
-- Parks what has waited long enough, and returns how much. What is behind another one is parked with it, goes on waiting
-- with it, or is sent again if that one is gone. A key may have very many: one of each kind tells.
-- Writes parked_messages. Uses parked_messages_by_end, parked_messages_pkey, parked_messages_by_key,
-- parked_messages_stopping.
WITH due AS MATERIALIZED (
    SELECT p.id, p.key, p.routing_key IS NULL AS behind FROM outbox.parked_messages AS p
    WHERE p.relay = %(name)s AND p.waits_until <= now() AND NOT p.retry
    ORDER BY p.waits_until LIMIT %(limit)s
), found AS MATERIALIZED (
    SELECT d.id, d.behind AND NOT coalesce(e.here, false) AS goes, d.behind AND e.here AND s.stops IS NULL AS waits
    FROM due AS d
    LEFT JOIN LATERAL (
        SELECT true AS here FROM outbox.parked_messages AS p
        WHERE d.behind AND p.relay = %(name)s AND p.key = d.key AND p.id < d.id LIMIT 1) AS e ON true
    LEFT JOIN LATERAL (
        SELECT true AS stops FROM outbox.parked_messages AS p
        WHERE d.behind AND p.relay = %(name)s AND p.key = d.key AND p.id < d.id AND p.waits_until IS NULL AND NOT p.retry
        LIMIT 1) AS s ON true
), moved AS (
    UPDATE outbox.parked_messages AS p
    SET retry = f.goes, parked_at = CASE WHEN f.goes OR f.waits THEN p.parked_at ELSE now() END,
        waits_until = CASE WHEN f.goes THEN p.waits_until WHEN f.waits THEN now() + make_interval(secs => %(again)s) END
    FROM found AS f WHERE p.relay = %(name)s AND p.id = f.id
)
SELECT count(*) FROM found AS f WHERE NOT f.goes AND NOT f.waits;
