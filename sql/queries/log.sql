-- Step 5: cuts the log into windows by two snapshots, reads a window in the order of ids, moves the cursor. The method
-- is PgQ's. What commits late is in a later window. A window is frozen, and reads the same again after a crash. Because
-- a writer holds its workflow's row, the order of ids within a window is the commit order of each key.

-- name: relay_register
-- Makes the row of a name that relays for the first time. It gets every message that is still in the log, or only those
-- that are committed from now on. A further shard gets what the others of its set have got. No row is made where relays
-- give the entities other homes, unless these have delivered all that there is and this one begins now.
-- Reads messages, parked_messages. Writes relays. Uses relays_pkey, messages_by_transaction, parked_messages_pkey.
INSERT INTO outbox.relays (name, cluster, settings, settings_since, window_start)
SELECT %(name)s, (SELECT c.system_identifier::text FROM pg_control_system() AS c), %(settings)s::jsonb, b.start, b.start
FROM (
    SELECT CASE WHEN %(from_now)s THEN pg_current_snapshot() ELSE coalesce((
        SELECT r.settings_since FROM outbox.relays AS r
        WHERE r.settings - 'shard' - 'target' = %(settings)s::jsonb - 'shard' - 'target'
          AND split_part(r.settings ->> 'shard', '/', 2) = split_part(%(settings)s::jsonb ->> 'shard', '/', 2)
        ORDER BY pg_snapshot_xmin(r.settings_since) LIMIT 1), '3:3:') END AS start
) AS b
WHERE NOT EXISTS (SELECT FROM outbox.relays AS r WHERE r.name = %(name)s)
  AND (%(change)s OR NOT EXISTS (
      SELECT FROM outbox.relays_sharded_otherwise(%(name)s, %(settings)s::jsonb) AS o
      WHERE o.runs OR NOT o.drained OR NOT %(from_now)s))
ON CONFLICT (name) DO NOTHING;

-- name: relay_take_over
-- Takes the name if no process has it, its owner's beat is late by the database's clock, or its owner is this process.
-- The new epoch fences off the process that relayed before, and the nonce one that was given the same epoch by a server
-- that was failed over from. Other settings are taken if the name has delivered all that there is, and no relay gives the
-- entities other homes. `foreign`: the snapshots are from another server, or from this one's future, as after a restore.
-- Reads messages, parked_messages. Writes relays. Uses relays_pkey, messages_by_transaction, parked_messages_pkey.
UPDATE outbox.relays AS r
SET epoch = r.epoch + 1, nonce = %(nonce)s::uuid, owner = %(owner)s, target = %(target)s, trouble = NULL, idle = false,
    -- The target's address may change without a message going elsewhere. A row of a release before has no settings.
    settings_since = CASE WHEN r.settings - 'target' <> %(settings)s::jsonb - 'target' THEN r.window_start
                          ELSE coalesce(r.settings_since, '3:3:') END,
    settings = %(settings)s::jsonb, updated_at = now()
WHERE r.name = %(name)s
  AND (r.owner IS NULL OR r.nonce = %(nonce)s::uuid OR r.updated_at < now() - make_interval(secs => %(lease)s))
  AND (%(change)s OR NOT EXISTS (
      SELECT FROM outbox.relays_sharded_otherwise(%(name)s, %(settings)s::jsonb) AS o WHERE o.sharded AND o.runs))
  AND (%(change)s OR r.settings IS NULL OR r.settings = %(settings)s::jsonb
       OR (outbox.relay_drained(%(name)s) AND NOT EXISTS (
           SELECT FROM outbox.relays_sharded_otherwise(%(name)s, %(settings)s::jsonb) AS o WHERE o.runs OR NOT o.drained)))
RETURNING r.epoch, r.window_start::text, r.window_end::text, r.position,
    r.cluster <> (SELECT c.system_identifier::text FROM pg_control_system() AS c)
    OR pg_snapshot_xmax(coalesce(r.window_end, r.window_start)) > pg_snapshot_xmax(pg_current_snapshot()) AS foreign;

-- name: relay_settings
-- Returns what may keep these settings from being taken: those that the name has, whether it has a row, whether a process
-- holds it, whether it has delivered all that there is; and the relays that give the entities other homes.
-- Reads messages, parked_messages, relays. Uses relays_pkey, messages_by_transaction, parked_messages_pkey.
SELECT r.settings, r.name IS NOT NULL,
       r.owner IS NOT NULL AND r.nonce IS DISTINCT FROM %(nonce)s::uuid
           AND r.updated_at >= now() - make_interval(secs => %(lease)s),
       outbox.relay_drained(%(name)s), o.name, o.sharded, o.runs, o.drained
FROM (SELECT) AS one
LEFT JOIN outbox.relays AS r ON r.name = %(name)s
LEFT JOIN outbox.relays_sharded_otherwise(%(name)s, %(settings)s::jsonb) AS o ON true
ORDER BY o.name;

-- name: relay_leave
-- Gives up the name, unless another process has taken it over.
-- Writes relays. Uses relays_pkey.
UPDATE outbox.relays AS r SET owner = NULL, idle = false, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.nonce = %(nonce)s::uuid;

-- name: relay_restore_lock
-- Keeps others from writing messages, cutting windows and turning the ring while the log is stamped.
-- Locks messages and relays, SHARE ROW EXCLUSIVE.
LOCK TABLE outbox.messages, outbox.relays IN SHARE ROW EXCLUSIVE MODE;

-- name: relay_restore_messages
-- Stamps every message with this transaction. After a restore all messages count as new: some may be repeated, none is
-- lost.
-- Writes messages.
UPDATE outbox.messages SET xid = pg_current_xact_id();

-- name: relay_restore_cursors
-- Resets every relay to the beginning of the log.
-- Writes relays.
UPDATE outbox.relays AS r
SET cluster = (SELECT c.system_identifier::text FROM pg_control_system() AS c), window_start = '3:3:', window_end = NULL,
    settings_since = '3:3:', position = 0, epoch = r.epoch + 1, owner = NULL, updated_at = now();

-- name: relay_cut
-- Ends a window now if there is anything new, and returns it. No row: there is nothing new, or the name was taken over,
-- which relay_beat detects. It looks for new messages, and for those whose transactions were in progress at the last
-- cut.
-- Reads messages. Writes relays. Uses messages_by_transaction, relays_pkey.
UPDATE outbox.relays AS r
SET window_end = pg_current_snapshot(), position = 0, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.nonce = %(nonce)s::uuid AND r.window_end IS NULL
  AND (EXISTS (SELECT FROM outbox.messages AS m WHERE m.xid >= pg_snapshot_xmax(r.window_start))
       OR EXISTS (SELECT FROM outbox.messages AS m WHERE m.xid = ANY (ARRAY(SELECT pg_snapshot_xip(r.window_start)))))
RETURNING r.window_start::text, r.window_end::text;

-- name: window_read
-- Opens a cursor on the next messages of a window. The cursor outlives its transaction: messages are sorted once and
-- fetched in parts, while no transaction is open.
-- Reads messages. Uses messages_by_transaction.
DECLARE outbox_window NO SCROLL CURSOR WITH HOLD FOR
SELECT m.id, m.message_id::text, m.topic, m.key, m.payload::text, m.headers::text,
       -- The nearest time that exists outside Postgres: a value written by hand must not stop the log.
       greatest(least(m.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00'), m.workflow_id::text
FROM (
    SELECT n.id, n.message_id, n.topic, n.key, n.payload, n.headers, n.created_at, n.xid, n.workflow_id FROM outbox.messages AS n
    WHERE n.xid >= pg_snapshot_xmax(%(start)s::pg_snapshot) AND n.xid < pg_snapshot_xmax(%(end)s::pg_snapshot)
    UNION ALL
    SELECT l.id, l.message_id, l.topic, l.key, l.payload, l.headers, l.created_at, l.xid, l.workflow_id FROM outbox.messages AS l
    WHERE l.xid = ANY (ARRAY(SELECT pg_snapshot_xip(%(start)s::pg_snapshot)))
) AS m
WHERE m.id > %(position)s AND pg_visible_in_snapshot(m.xid, %(end)s::pg_snapshot)
ORDER BY m.id
LIMIT %(limit)s;

-- name: window_fetch
-- Fetches the next part of the window.
FETCH FORWARD {rows} FROM outbox_window;

-- name: window_close
-- Closes the cursor.
CLOSE outbox_window;

-- name: relay_advance
-- Moves the cursor and parks what could not be sent, in one transaction. `done`: the whole window. No row: the name was
-- taken over, and nothing was changed. A message that an erasure has deleted meanwhile is not parked: the erasure locks
-- the relays first, and then deletes.
-- Reads messages. Writes parked_messages, relays. Locks the messages that are parked. Uses relays_pkey, parked_messages_pkey,
-- messages_by_workflow.
WITH moved AS (
    UPDATE outbox.relays AS r
    SET window_start = CASE WHEN %(done)s THEN r.window_end ELSE r.window_start END,
        window_end = CASE WHEN %(done)s THEN NULL ELSE r.window_end END,
        position = CASE WHEN %(done)s THEN 0 ELSE %(position)s END,
        relayed = r.relayed + %(count)s, updated_at = now()
    WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.nonce = %(nonce)s::uuid AND r.window_end IS NOT NULL
    RETURNING r.name
), remaining AS MATERIALIZED (
    SELECT m.message_id
    FROM moved, outbox.messages AS m
    WHERE m.workflow_id = ANY (%(workflows)s::uuid[]) AND m.message_id = ANY (%(message_ids)s::uuid[])
    FOR KEY SHARE OF m
), parked AS (
    INSERT INTO outbox.parked_messages
        (relay, id, message_id, topic, key, payload, headers, workflow_id, created_at, reason, routing_key, waits_until)
    SELECT moved.name, p.id, p.message_id, p.topic, p.key, p.payload::jsonb, p.headers::jsonb, p.workflow_id, p.created_at,
           p.reason, p.routing_key, now() + make_interval(secs => p.waits)
    FROM moved, unnest(%(ids)s::bigint[], %(message_ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(payloads)s::text[],
                       %(headers)s::text[], %(created)s::timestamptz[], %(reasons)s::text[], %(routing_keys)s::text[],
                       %(waits)s::float8[], %(workflows)s::uuid[])
        AS p (id, message_id, topic, key, payload, headers, created_at, reason, routing_key, waits, workflow_id)
    WHERE p.workflow_id IS NULL OR p.message_id IN (SELECT remaining.message_id FROM remaining)
    ON CONFLICT (relay, id) DO NOTHING
)
SELECT moved.name FROM moved;

-- name: relay_beat
-- Stores the current problem (null: none) and whether to wake this relay. No row: the name was taken over.
-- Writes relays. Uses relays_pkey.
UPDATE outbox.relays AS r SET trouble = %(trouble)s, idle = %(idle)s, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.nonce = %(nonce)s::uuid
RETURNING r.epoch;
