-- The outbox: an insert-only log in a ring of fixed child tables. A message's id says which child holds it: a million ids
-- go to a child, then the next, and around. The ring turns with its sequence, so a writer looks nothing up, and turning it
-- early is one setval() to the next multiple.

CREATE SEQUENCE outbox.message_ids AS bigint CACHE 1;

-- `xid` is the transaction that wrote the message. A relay cuts the log into windows by two snapshots (visible in the second
-- and not in the first), so what commits late is never skipped: it is in a later window.
CREATE TABLE outbox.messages (
    id          bigint NOT NULL DEFAULT nextval('outbox.message_ids'),
    message_id  uuid NOT NULL DEFAULT outbox.uuid7(),
    topic       text COLLATE "C" NOT NULL CONSTRAINT messages_topic_not_empty CHECK (topic <> ''),
    key         text COLLATE "C",
    payload     jsonb,
    headers     jsonb,
    workflow_id uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id()
) PARTITION BY LIST (((id / 1000000) % 4));
ALTER SEQUENCE outbox.message_ids OWNED BY outbox.messages.id;

CREATE TABLE outbox.messages_0 PARTITION OF outbox.messages FOR VALUES IN (0);
CREATE TABLE outbox.messages_1 PARTITION OF outbox.messages FOR VALUES IN (1);
CREATE TABLE outbox.messages_2 PARTITION OF outbox.messages FOR VALUES IN (2);
CREATE TABLE outbox.messages_3 PARTITION OF outbox.messages FOR VALUES IN (3);

-- For `outbox show`: the messages of one workflow.
CREATE INDEX messages_by_workflow ON outbox.messages (workflow_id) WHERE workflow_id IS NOT NULL;
CREATE INDEX messages_by_transaction ON outbox.messages (xid);

-- One row for each relay's name; every relay gets every message. `epoch` is the fence: it moves when another process takes
-- the name over. Between `window_start` and `window_end` (null: no window is open) `position` is the id up to which the
-- window is done. `cluster` tells whether the snapshots are from this server: a restored dump has other transactions.
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

-- For the trigger messages_written, which runs in every writer's transaction: while an open transaction keeps the old
-- versions of these rows, writers don't walk through them. A relay under load is never in this index.
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
