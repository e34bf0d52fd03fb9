-- Where a consumer records the ids of messages, so that a second delivery has no effect; and what it could not handle.
--
-- A ring of fixed child tables. The time inside a message's UUIDv7 says which child holds it: a week goes to a child, then
-- the next, and around after 32 weeks. So a duplicate finds its child whenever it comes, no table is created while
-- somebody consumes, and old weeks go by TRUNCATE, which locks that one child. Children that were created and dropped day
-- by day would need the parent's ACCESS EXCLUSIVE lock, which can't be had while handlers hold their transactions open.
-- A child that was not emptied in time holds two weeks of the calendar: it stays correct, and is emptied later.

-- varchar, not text: a table that can't have long values has no TOAST table.
CREATE TABLE outbox.inbox (
    consumer    varchar(63) COLLATE "C" NOT NULL CONSTRAINT inbox_consumer_not_empty CHECK (consumer <> ''),
    message_id  uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY LIST (((('x' || translate(left(message_id::text, 13), '-', ''))::bit(48)::bigint / 604800000) % 32));

-- Each child has the key of its own: all rows of an id are in one child, so it holds for all of them.
DO $$ BEGIN
    FOR n IN 0..31 LOOP
        EXECUTE format('CREATE TABLE outbox.inbox_%1$s PARTITION OF outbox.inbox (
            CONSTRAINT inbox_%1$s_pkey PRIMARY KEY (message_id, consumer)) FOR VALUES IN (%2$s)', to_char(n, 'FM00'), n);
    END LOOP;
END $$;

-- The first day (counted from 1970) whose ids are certainly all there; ids of earlier days are refused. It only rises. A
-- sequence, because its value is visible to every transaction at once, whatever its snapshot: see inbox_refuse.
CREATE SEQUENCE outbox.inbox_floor AS bigint MINVALUE 0 START 0 CACHE 1;

-- What a consumer could not handle, with the reason. It waits for a person: `outbox parked`. `digest` is that of the
-- message's id, or of its content if it has no readable id: the same message is one row, however often it is delivered.
CREATE TABLE outbox.parked_deliveries (
    id         bigint NOT NULL GENERATED ALWAYS AS IDENTITY CONSTRAINT parked_deliveries_pkey PRIMARY KEY,
    consumer   varchar(63) COLLATE "C" NOT NULL,
    queue      text NOT NULL,
    message_id text COLLATE "C",
    topic      text COLLATE "C",
    body       bytea NOT NULL,
    headers    jsonb NOT NULL,
    reason     text NOT NULL,
    deliveries integer NOT NULL DEFAULT 1,
    digest     bytea NOT NULL,
    retry      boolean NOT NULL DEFAULT false,
    parked_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parked_deliveries_content_key UNIQUE (consumer, digest)
);
CREATE INDEX parked_deliveries_to_retry ON outbox.parked_deliveries (consumer, id) WHERE retry;

-- How many attempts a message has had, where the first one did not succeed: a handler that kills its process must not do
-- so without end.
CREATE TABLE outbox.delivery_attempts (
    consumer   varchar(63) COLLATE "C" NOT NULL,
    message_id uuid NOT NULL,
    attempts   integer NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT delivery_attempts_pkey PRIMARY KEY (consumer, message_id)
);
