-- Step 5: cuts the log into windows by two snapshots, reads a window in the order of ids, moves the cursor. The method
-- is PgQ's. What commits late is in a later window. A window is frozen, and reads the same again after a crash. Because
-- a writer holds its workflow's row, the order of ids within a window is the commit order of each key.

-- name: relay_register
-- Makes the row of a name that relays for the first time. It gets every message that is still in the log, or only those
-- committed from now on.
-- Writes relays. Uses relays_pkey.
INSERT INTO outbox.relays (name, cluster, window_start)
VALUES (%(name)s, (SELECT c.system_identifier::text FROM pg_control_system() AS c),
        CASE WHEN %(from_now)s THEN pg_current_snapshot() ELSE '3:3:' END)
ON CONFLICT (name) DO NOTHING;

-- name: relay_take_over
-- Takes the name if no process has it or its owner's heartbeat is late, by the database's clock. The new epoch fences
-- off the former process. `foreign`: the snapshots are from another server, or from this one's future, as after a
-- restore.
-- Writes relays. Uses relays_pkey.
UPDATE outbox.relays AS r
SET epoch = r.epoch + 1, owner = %(owner)s, target = %(target)s, trouble = NULL, idle = false, updated_at = now()
WHERE r.name = %(name)s AND (r.owner IS NULL OR r.updated_at < now() - make_interval(secs => %(lease)s))
RETURNING r.epoch, r.window_start::text, r.window_end::text, r.position,
    r.cluster <> (SELECT c.system_identifier::text FROM pg_control_system() AS c)
    OR pg_snapshot_xmax(coalesce(r.window_end, r.window_start)) > pg_snapshot_xmax(pg_current_snapshot()) AS foreign;

-- name: relay_leave
-- Gives up the name, unless another process has taken it over.
-- Writes relays. Uses relays_pkey.
UPDATE outbox.relays AS r SET owner = NULL, idle = false, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s;

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
    position = 0, epoch = r.epoch + 1, owner = NULL, updated_at = now();

-- name: relay_cut
-- Ends a window now if there is anything new, and returns it. No row: there is nothing new, or the name was taken over,
-- which relay_beat detects. It looks for new messages, and for those whose transactions were in progress at the last
-- cut.
-- Reads messages. Writes relays. Uses messages_by_transaction, relays_pkey.
UPDATE outbox.relays AS r
SET window_end = pg_current_snapshot(), position = 0, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.window_end IS NULL
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
       greatest(least(m.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00')
FROM (
    SELECT n.id, n.message_id, n.topic, n.key, n.payload, n.headers, n.created_at, n.xid FROM outbox.messages AS n
    WHERE n.xid >= pg_snapshot_xmax(%(start)s::pg_snapshot) AND n.xid < pg_snapshot_xmax(%(end)s::pg_snapshot)
    UNION ALL
    SELECT l.id, l.message_id, l.topic, l.key, l.payload, l.headers, l.created_at, l.xid FROM outbox.messages AS l
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
-- taken over, and nothing was changed.
-- Writes parked_messages, relays. Uses relays_pkey, parked_messages_pkey.
WITH moved AS (
    UPDATE outbox.relays AS r
    SET window_start = CASE WHEN %(done)s THEN r.window_end ELSE r.window_start END,
        window_end = CASE WHEN %(done)s THEN NULL ELSE r.window_end END,
        position = CASE WHEN %(done)s THEN 0 ELSE %(position)s END,
        relayed = r.relayed + %(count)s, updated_at = now()
    WHERE r.name = %(name)s AND r.epoch = %(epoch)s AND r.window_end IS NOT NULL
    RETURNING r.name
), parked AS (
    INSERT INTO outbox.parked_messages (relay, id, message_id, topic, key, payload, headers, created_at, reason)
    SELECT moved.name, p.id, p.message_id, p.topic, p.key, p.payload::jsonb, p.headers::jsonb, p.created_at, p.reason
    FROM moved, unnest(%(ids)s::bigint[], %(message_ids)s::uuid[], %(topics)s::text[], %(keys)s::text[], %(payloads)s::text[],
                       %(headers)s::text[], %(created)s::timestamptz[], %(reasons)s::text[])
        AS p (id, message_id, topic, key, payload, headers, created_at, reason)
    ON CONFLICT (relay, id) DO NOTHING
)
SELECT moved.name FROM moved;

-- name: relay_beat
-- Stores the current problem (null: none) and whether to wake this relay. No row: the name was taken over.
-- Writes relays. Uses relays_pkey.
UPDATE outbox.relays AS r SET trouble = %(trouble)s, idle = %(idle)s, updated_at = now()
WHERE r.name = %(name)s AND r.epoch = %(epoch)s
RETURNING r.epoch;

-- name: parked_keys
-- Returns which of these keys have a parked message: in strict mode, later messages of the key wait behind it.
-- Reads parked_messages. Uses parked_messages_by_key.
SELECT DISTINCT p.key FROM outbox.parked_messages AS p WHERE p.relay = %(name)s AND p.key = ANY (%(keys)s::text[]);

-- name: parked_to_retry
-- Returns parked messages that a person wants to send again, oldest first; in strict mode, none before an earlier one
-- of its key.
-- Reads parked_messages. Uses parked_messages_pkey, parked_messages_by_key.
SELECT p.id, p.message_id::text, p.topic, p.key, p.payload::text, p.headers::text,
       greatest(least(p.created_at, '9999-12-30 00:00+00'), '0001-01-02 00:00+00')
FROM outbox.parked_messages AS p
WHERE p.relay = %(name)s AND p.retry
  AND NOT (%(strict)s AND EXISTS (
      SELECT FROM outbox.parked_messages AS e
      WHERE e.relay = p.relay AND e.key = p.key AND e.id < p.id AND NOT e.retry))
ORDER BY p.id LIMIT 1000;

-- name: parked_settle
-- Removes messages that were sent; those that failed again wait with their new reason.
-- Writes parked_messages. Uses parked_messages_pkey.
WITH sent AS (
    DELETE FROM outbox.parked_messages AS p WHERE p.relay = %(name)s AND p.id = ANY (%(sent)s::bigint[]) RETURNING 1
), failed AS (
    UPDATE outbox.parked_messages AS p SET retry = false, reason = f.reason, parked_at = now()
    FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS f (id, reason)
    WHERE p.relay = %(name)s AND p.id = f.id
)
SELECT count(*) FROM sent;
