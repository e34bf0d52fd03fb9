-- The last word before the COMMIT of a handler's transaction. Both are sent in one round trip, so it must be an error that
-- keeps what the handler wrote from being committed: its transaction is another one by now, or a job is not held.
CREATE FUNCTION outbox.require_held(claim text, jobs integer, held bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(current_setting('outbox.claim', true), '') <> claim THEN
        RAISE EXCEPTION 'this is not the transaction that the handler was given' USING ERRCODE = 'OB009';
    ELSIF held < jobs THEN
        RAISE EXCEPTION '% of % jobs are not held any more', jobs - held, jobs USING ERRCODE = 'OB010';
    END IF;
    RETURN true;
END
$$;
