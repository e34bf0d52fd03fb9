-- Where a consumer records the ids of messages, so that a second delivery has no effect; and what it could not take.
--
-- A ring of fixed child tables. The time inside a message's UUIDv7 says which child holds it: a week to a child, then the
-- next, and around after 32 weeks. So a duplicate meets its child whenever it comes, no table is ever made while
-- somebody consumes, and old weeks go by TRUNCATE, which locks that one child. Children that were made and dropped day
-- by day would need the parent's ACCESS EXCLUSIVE lock, which nobody gets while handlers hold their transactions open.
-- A child that was not emptied in time holds two weeks of the calendar: it stays right, and goes later.

-- When a UUIDv7 was made: its first 48 bits are Unix milliseconds.
CREATE FUNCTION outbox.uuid7_time(id uuid) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN to_timestamp((('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0)::float8);

-- varchar, not text: a table that can't have long values has no TOAST table.
CREATE TABLE outbox.inbox (
    consumer    varchar(63) COLLATE "C" NOT NULL CONSTRAINT inbox_consumer_not_empty CHECK (consumer <> ''),
    message_id  uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY LIST (((('x' || translate(left(message_id::text, 13), '-', ''))::bit(48)::bigint / 604800000) % 32));

-- The key is each child's own: all rows of an id are in one child, so it holds for all of them.
DO $$ BEGIN
    FOR n IN 0..31 LOOP
        EXECUTE format('CREATE TABLE outbox.inbox_%1$s PARTITION OF outbox.inbox (
            CONSTRAINT inbox_%1$s_pkey PRIMARY KEY (message_id, consumer)) FOR VALUES IN (%2$s)', to_char(n, 'FM00'), n);
    END LOOP;
END $$;

-- The first day (counted from 1970) whose ids are surely all there; ids of earlier days are refused. It only rises. A
-- sequence because its value is seen by everybody at once, whatever snapshot they have: see inbox_refuse.
CREATE SEQUENCE outbox.inbox_floor AS bigint MINVALUE 0 START 0 CACHE 1;

-- Ids made before this are refused: the inbox may not remember them.
CREATE FUNCTION outbox.inbox_oldest() RETURNS timestamptz
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN (SELECT to_timestamp(s.last_value * 86400.0) FROM outbox.inbox_floor AS s);

-- Refuses what can't be told to be new. It runs when the child is locked already: whoever passes has the child as it
-- is, and whoever comes after it was emptied meets the floor that was raised before. An id of the far future would
-- keep its child from being emptied, for years perhaps.
CREATE FUNCTION outbox.inbox_refuse() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sent   timestamptz := outbox.uuid7_time(NEW.message_id);
    oldest timestamptz := outbox.inbox_oldest();
BEGIN
    IF NEW.message_id::text !~ '^.{14}7.{4}[89ab]' THEN
        RAISE EXCEPTION 'message_id % is no UUIDv7', NEW.message_id
            USING ERRCODE = 'OB006', HINT = 'Take the message''s own id: the header cloudEvents_id.';
    ELSIF sent < oldest THEN
        RAISE EXCEPTION 'message_id % was made at %, and the inbox remembers nothing before %', NEW.message_id, sent, oldest
            USING ERRCODE = 'OB007', HINT = 'Nobody can say whether it is a duplicate: a person must decide.';
    ELSIF sent > clock_timestamp() + interval '1 day' THEN
        RAISE EXCEPTION 'message_id % was made at %, which is more than a day ahead', NEW.message_id, sent
            USING ERRCODE = 'OB008', HINT = 'The clock of its sender is wrong, or this server''s.';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER inbox_refuse
    BEFORE INSERT ON outbox.inbox
    FOR EACH ROW EXECUTE FUNCTION outbox.inbox_refuse();

-- What a consumer could not take, with the reason: it waits for a person (`outbox parked`). `digest` is of the message's
-- id, or of its content if it has none that can be read: the same one is one row, however often it is delivered.
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

-- How often a message was begun, for those that didn't succeed at once: a handler that kills its process must not do so
-- for ever.
CREATE TABLE outbox.delivery_attempts (
    consumer   varchar(63) COLLATE "C" NOT NULL,
    message_id uuid NOT NULL,
    attempts   integer NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT delivery_attempts_pkey PRIMARY KEY (consumer, message_id)
);

-- Forgets ids that were made more than `days` ago, a child at a time, and says which children were emptied and which
-- could not be had. The floor is raised first: what may be gone is refused. A child is locked for as long as nobody
-- notices, or left for the next time. To be called by workers, consumers or cron, any number of them at once.
CREATE FUNCTION outbox.inbox_forget(days double precision) RETURNS TABLE (child text, emptied boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    first_day bigint := floor(extract(epoch FROM clock_timestamp()) / 86400 - days);
    old_only  text := 'SELECT coalesce((SELECT outbox.uuid7_time(i.message_id) < outbox.inbox_oldest() '
                      'FROM outbox.%I AS i ORDER BY i.message_id DESC LIMIT 1), false)';
    is_old    boolean;
BEGIN
    IF days IS NULL OR NOT days BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the inbox remembers 1 to 200 days, not %', days USING ERRCODE = '22023';
    END IF;
    -- Two at once could set the floor back.
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox.inbox_forget')) THEN
        RETURN;
    END IF;
    PERFORM setval('outbox.inbox_floor', first_day) FROM outbox.inbox_floor AS s WHERE s.last_value < first_day;
    DELETE FROM outbox.delivery_attempts AS a WHERE a.ctid = ANY (ARRAY(
        SELECT o.ctid FROM outbox.delivery_attempts AS o WHERE o.at < outbox.inbox_oldest() FOR UPDATE SKIP LOCKED));
    FOR child IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'outbox.inbox'::regclass ORDER BY c.relname
    LOOP
        EXECUTE format(old_only, child) INTO is_old;
        IF is_old THEN
            BEGIN
                EXECUTE format('LOCK TABLE outbox.%I IN ACCESS EXCLUSIVE MODE', child);
                EXECUTE format(old_only, child) INTO emptied;
                IF emptied THEN
                    EXECUTE format('TRUNCATE TABLE outbox.%I', child);
                    RETURN NEXT;
                END IF;
            EXCEPTION WHEN lock_not_available THEN
                emptied := false;
                RETURN NEXT;
            END;
        END IF;
    END LOOP;
END
$$;
