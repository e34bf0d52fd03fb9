-- Wakes relays that say that they are idle. Under load there is no NOTIFY.
CREATE OR REPLACE FUNCTION outbox.messages_written() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM outbox.relays AS r WHERE r.idle) THEN
        PERFORM pg_notify('outbox_relay', '');
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.messages_written() IS 'Internal: wakes idle relays.';

-- Whether a relay has delivered all that is committed: it has no window under way, nothing behind it, nothing parked.
CREATE OR REPLACE FUNCTION outbox.relay_drained(relay text) RETURNS boolean
LANGUAGE sql STABLE
RETURN NOT EXISTS (SELECT FROM outbox.parked_messages AS p WHERE p.relay = relay_drained.relay)
    AND EXISTS (
        SELECT FROM outbox.relays AS r
        WHERE r.name = relay_drained.relay AND r.window_end IS NULL
          AND NOT EXISTS (SELECT FROM outbox.messages AS m WHERE m.xid >= pg_snapshot_xmin(r.window_start)
                          AND NOT pg_visible_in_snapshot(m.xid, r.window_start)));
COMMENT ON FUNCTION outbox.relay_drained(text) IS 'Internal: returns whether a relay has delivered all that is there.';

-- The relays beside `relay` that hand the same messages on to the same pipeline by another number of shards than
-- `settings`: an entity has another home there. One without a shard may as well be meant for another place (`sharded`).
CREATE OR REPLACE FUNCTION outbox.relays_sharded_otherwise(relay text, settings jsonb)
RETURNS TABLE (name text, sharded boolean, runs boolean, drained boolean)
LANGUAGE sql STABLE
AS $$
    SELECT r.name, r.settings ? 'shard' AND relays_sharded_otherwise.settings ? 'shard',
           r.owner IS NOT NULL AND r.updated_at > now() - interval '5 seconds', outbox.relay_drained(r.name)
    FROM outbox.relays AS r
    CROSS JOIN LATERAL (
        SELECT coalesce(split_part(r.settings ->> 'shard', '/', 2), '1')::integer AS theirs,
               coalesce(split_part(relays_sharded_otherwise.settings ->> 'shard', '/', 2), '1')::integer AS ours
    ) AS s
    WHERE r.name <> relays_sharded_otherwise.relay AND s.theirs <> s.ours
      AND r.settings ->> 'pipeline' = relays_sharded_otherwise.settings ->> 'pipeline'
      AND r.settings -> 'topics' = relays_sharded_otherwise.settings -> 'topics'
$$;
COMMENT ON FUNCTION outbox.relays_sharded_otherwise(text, jsonb) IS
    'Internal: returns the relays for which the entities of a pipeline have other homes.';
