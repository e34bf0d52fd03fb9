-- Which message ids the inbox takes, and how it forgets.

CREATE OR REPLACE FUNCTION outbox.inbox_oldest() RETURNS timestamptz
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN (SELECT to_timestamp(s.last_value * 86400.0) FROM outbox.inbox_floor AS s);
COMMENT ON FUNCTION outbox.inbox_oldest() IS
    'Returns the time before which ids are refused: the inbox may have forgotten those that were made earlier.';

-- Refuses an id that can't be known to be new. It runs when the child is locked already: an insert that passes has
-- the child as it is, and one that comes after the child was emptied meets the floor that was raised before. An id from far
-- in the future would keep its child from being emptied, perhaps for years.
CREATE OR REPLACE FUNCTION outbox.inbox_refuse() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sent   timestamptz := outbox.uuid7_time(NEW.message_id);
    oldest timestamptz := outbox.inbox_oldest();
    newest timestamptz := clock_timestamp() + interval '1 day';
    told   jsonb := jsonb_build_object('consumer', NEW.consumer, 'message_id', NEW.message_id);
BEGIN
    IF NEW.message_id::text !~ '^.{14}7.{4}[89ab]' THEN
        RAISE EXCEPTION 'message_id % is not a UUIDv7', NEW.message_id
            USING ERRCODE = 'OB006', DETAIL = told::text, HINT = 'Take the message''s own id: the header cloudEvents_id.';
    ELSIF sent < oldest THEN
        RAISE EXCEPTION 'message_id % was made at %, and the inbox remembers nothing before %', NEW.message_id, sent, oldest
            USING ERRCODE = 'OB007', DETAIL = (told || jsonb_build_object('sent_at', sent, 'oldest', oldest))::text,
                  HINT = 'It may be a duplicate: a person must decide.';
    ELSIF sent > newest THEN
        RAISE EXCEPTION 'message_id % was made at %, which is more than a day ahead', NEW.message_id, sent
            USING ERRCODE = 'OB008', DETAIL = (told || jsonb_build_object('sent_at', sent, 'newest', newest))::text,
                  HINT = 'The clock of its sender is wrong, or that of this server.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.inbox_refuse() IS 'Internal: refuses ids that may be duplicates.';

-- Forgetting takes TRUNCATE and the floor. With these rights of its own, a role could have an id forgotten that is not
-- refused afterwards; this function does both, in the right order. The floor is raised first, so what may be gone is
-- refused. A child is locked only briefly, or left for the next time.
CREATE OR REPLACE FUNCTION outbox.inbox_forget(days double precision) RETURNS TABLE (child text, emptied boolean)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
AS $$
DECLARE
    first_day bigint := floor(extract(epoch FROM clock_timestamp()) / 86400 - days);
    old_only  text := 'SELECT coalesce((SELECT outbox.uuid7_time(i.message_id) < outbox.inbox_oldest() '
                      'FROM outbox.%I AS i ORDER BY i.message_id DESC LIMIT 1), false)';
    is_old    boolean;
    counted   tid;
BEGIN
    IF days IS NULL OR NOT days BETWEEN 1 AND 200 THEN
        RAISE EXCEPTION 'the inbox remembers 1 to 200 days, not %', days USING ERRCODE = '22023';
    END IF;
    -- The floor is one for all consumers, and can't be set back: one of them must not have it forget what the others need.
    IF days < 7 AND NOT has_table_privilege(outbox.session_role()::name, 'outbox.inbox', 'TRUNCATE') THEN
        RAISE EXCEPTION 'only the owner has the inbox forget after less than 7 days, for every consumer'
            USING ERRCODE = 'insufficient_privilege', HINT = 'keep_inbox (--keep-inbox) is 7 or more for other roles.';
    END IF;
    -- Two at once could set the floor back.
    IF NOT pg_try_advisory_xact_lock(hashtext('outbox.inbox_forget')) THEN
        RETURN;
    END IF;
    PERFORM setval('outbox.inbox_floor', first_day) FROM outbox.inbox_floor AS s WHERE s.last_value < first_day;
    BEGIN
        DELETE FROM outbox.delivery_attempts AS a WHERE a.ctid = ANY (ARRAY(
            SELECT o.ctid FROM outbox.delivery_attempts AS o WHERE o.at < outbox.inbox_oldest() FOR UPDATE SKIP LOCKED));
    EXCEPTION WHEN OTHERS THEN
        -- A trigger of others refuses one of them: then each alone.
        FOR counted IN SELECT o.ctid FROM outbox.delivery_attempts AS o WHERE o.at < outbox.inbox_oldest() LOOP
            BEGIN
                DELETE FROM outbox.delivery_attempts AS a WHERE a.ctid = counted AND a.at < outbox.inbox_oldest();
            EXCEPTION WHEN OTHERS THEN
                RAISE WARNING 'a row of outbox.delivery_attempts can''t be deleted: %', SQLERRM;
            END;
        END LOOP;
    END;
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
            EXCEPTION
                WHEN lock_not_available THEN
                    emptied := false;
                    RETURN NEXT;
                WHEN OTHERS THEN
                    RAISE WARNING 'outbox.% can''t be emptied: %', child, SQLERRM;
                    emptied := false;
                    RETURN NEXT;
            END;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.inbox_forget(double precision) IS
    'Forgets ids that were made more than so many days ago, one child of the ring at a time. Returns the children that were '
    'emptied, and those that could not be locked. Workers, consumers and cron may call it at the same time.';
REVOKE EXECUTE ON FUNCTION outbox.inbox_forget(double precision) FROM PUBLIC;
