-- The ring of the message log: its children are emptied whole, by TRUNCATE, so the log never has dead rows.

-- name: ring
-- Returns the children of the message ring, and which one is being written to.
-- Reads message_ids.
SELECT c.relname, (s.last_value / 1000000) % 4 = substring(c.relname FROM '[0-9]+$')::integer AS current,
       s.last_value % 1000000 AS filled
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
CROSS JOIN outbox.message_ids AS s
WHERE i.inhparent = 'outbox.messages'::regclass
ORDER BY c.relname;

-- name: ring_child
-- Returns whether a child holds anything, and whether every relay has passed all of it. Without a relay, it counts as
-- passed when its newest message is older than `days` (null: never). The statement uses the child's index by
-- transaction.
-- Reads relays.
SELECT EXISTS (SELECT FROM {child}) AS filled,
       CASE WHEN EXISTS (SELECT FROM outbox.relays) THEN NOT EXISTS (
           SELECT FROM outbox.relays AS r
           WHERE EXISTS (SELECT FROM {child} AS m WHERE m.xid >= pg_snapshot_xmin(r.window_start)
                         AND NOT pg_visible_in_snapshot(m.xid, r.window_start)))
       ELSE coalesce((SELECT m.created_at FROM {child} AS m ORDER BY m.xid DESC LIMIT 1)
                     < now() - make_interval(secs => %(days)s::float8 * 86400), false) END AS passed;

-- name: ring_lock
-- Locks a child before it is emptied. A transaction that writes to the child may still be open. The wait for it is
-- short, because other writers queue behind this lock.
-- Locks the child, ACCESS EXCLUSIVE.
LOCK TABLE {child} IN ACCESS EXCLUSIVE MODE;

-- name: ring_truncate
-- Empties a child.
-- Locks the child, ACCESS EXCLUSIVE.
TRUNCATE TABLE {child};

-- name: ring_turn_lock
-- Lets one process turn the ring at a time. If two saw the same state, the second would set the sequence back, and ids
-- would come twice.
-- Locks an advisory lock.
SELECT pg_advisory_xact_lock(hashtext('outbox.ring'));

-- name: ring_turn
-- Lets the next message open the next child, long before this one has a million: when a tenth of it is filled, or its
-- first message is older than `days`. Only a child that is not written to can be emptied. It doesn't turn near the end
-- of the child: the sequence might get there by itself in between, and must never go back.
-- Writes message_ids.
SELECT setval('outbox.message_ids', (s.last_value / 1000000 + 1) * 1000000, false)
FROM outbox.message_ids AS s
WHERE mod(s.last_value, 1000000) <= 900000 AND (
    mod(s.last_value, 1000000) >= 100000
    OR (SELECT m.created_at FROM {child} AS m ORDER BY m.xid LIMIT 1)
       < now() - make_interval(secs => %(days)s::float8 * 86400));
