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
