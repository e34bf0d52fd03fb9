-- The ring of the message log: its children are emptied whole, by TRUNCATE, so the log never has a dead row.

-- name: ring
-- The children of the message ring, and which one is written to now.
SELECT c.relname, (s.last_value / 1000000) % 4 = substring(c.relname FROM '[0-9]+$')::integer AS current,
       s.last_value % 1000000 AS filled
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
CROSS JOIN outbox.message_ids AS s
WHERE i.inhparent = 'outbox.messages'::regclass
ORDER BY c.relname;

-- name: ring_child
-- Whether a child holds anything, and whether every relay there is has passed all of it. Where there is no relay, it has
-- been passed when its newest message is older than `days` (null: never). Uses its index by transaction.
SELECT EXISTS (SELECT FROM {child}) AS filled,
       CASE WHEN EXISTS (SELECT FROM outbox.relays) THEN NOT EXISTS (
           SELECT FROM outbox.relays AS r
           WHERE EXISTS (SELECT FROM {child} AS m WHERE m.xid >= pg_snapshot_xmin(r.window_start)
                         AND NOT pg_visible_in_snapshot(m.xid, r.window_start)))
       ELSE coalesce((SELECT m.created_at FROM {child} AS m ORDER BY m.xid DESC LIMIT 1)
                     < now() - make_interval(secs => %(days)s::float8 * 86400), false) END AS passed;

-- name: ring_lock
-- A writer of that child may still be under way: it is waited for shortly, since others queue behind us.
LOCK TABLE {child} IN ACCESS EXCLUSIVE MODE;

-- name: ring_truncate
TRUNCATE TABLE {child};

-- name: ring_turn_lock
-- One turns at a time: the second one of two that saw the same would set the sequence back, and ids would come twice.
SELECT pg_advisory_xact_lock(hashtext('outbox.ring'));

-- name: ring_turn
-- Lets the next message open the next child, long before a million are in this one: when a tenth of it is filled, or its
-- first message is older than `days`, since only a child that is not written to is emptied. Not near the end of the
-- child: the sequence would be there by itself in between, and must never go back.
SELECT setval('outbox.message_ids', (s.last_value / 1000000 + 1) * 1000000, false)
FROM outbox.message_ids AS s
WHERE mod(s.last_value, 1000000) <= 900000 AND (
    mod(s.last_value, 1000000) >= 100000
    OR (SELECT m.created_at FROM {child} AS m ORDER BY m.xid LIMIT 1)
       < now() - make_interval(secs => %(days)s::float8 * 86400));
