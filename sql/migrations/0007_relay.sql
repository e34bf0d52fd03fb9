-- How messages leave: each relay's place in the log, and what could not go out.

-- The transaction that wrote a message. A relay cuts the log into windows by two snapshots (visible in the
-- second and not in the first), so what commits late is never skipped: it is in a later window.
ALTER TABLE outbox.messages ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX messages_by_transaction ON outbox.messages (xid);

-- One row for each name, each of which gets every message. `epoch` is the fence: it moves when another process
-- takes the name over. Between `window_start` and `window_end` (null: none is open) `position` is the id up to which
-- the window is done. `cluster` tells whether the snapshots are of this server: a restored dump has other transactions.
CREATE TABLE outbox.relays (
    name         text COLLATE "C" NOT NULL CONSTRAINT relays_pkey PRIMARY KEY,
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text,
    target       text,
    cluster      text NOT NULL,
    window_start pg_snapshot NOT NULL,
    window_end   pg_snapshot,
    position     bigint NOT NULL DEFAULT 0,
    relayed      bigint NOT NULL DEFAULT 0,
    trouble      text,
    idle         boolean NOT NULL DEFAULT false,
    updated_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- For the trigger below, which runs in everybody's transaction: while an open transaction keeps the old versions of these
-- rows, writers don't walk through them. A relay under load never comes in here.
CREATE INDEX relays_idle ON outbox.relays (name) WHERE idle;

-- What a relay could not send, with the reason. It waits for a person: `outbox parked`.
CREATE TABLE outbox.parked_messages (
    relay       text COLLATE "C" NOT NULL,
    id          bigint NOT NULL,
    message_id  uuid NOT NULL,
    topic       text COLLATE "C" NOT NULL,
    key         text COLLATE "C",
    payload     jsonb,
    headers     jsonb,
    workflow_id uuid,
    created_at  timestamptz NOT NULL,
    reason      text NOT NULL,
    retry       boolean NOT NULL DEFAULT false,
    parked_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parked_messages_pkey PRIMARY KEY (relay, id)
);
-- In strict mode later messages of a key wait behind it.
CREATE INDEX parked_messages_by_key ON outbox.parked_messages (relay, key) WHERE key IS NOT NULL;

-- Wakes relays that say that they are idle: under load there is no NOTIFY.
CREATE FUNCTION outbox.messages_written() RETURNS trigger
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

CREATE TRIGGER messages_written
    AFTER INSERT ON outbox.messages
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.messages_written();
