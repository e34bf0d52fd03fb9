-- What an answer promises though its transaction has written nothing: a workflow, an id, a pause was there already.
--
-- Postgres has a COMMIT wait for the synchronous standbys only if its transaction has written to the log. One that has found
-- all there already would answer at once, and promise what perhaps only this server has: the COMMIT that wrote it may be
-- the one that nobody has confirmed. So such a transaction writes a word to the log. No table changes, and logical
-- decoding skips it where messages are not asked for.

CREATE OR REPLACE FUNCTION outbox.commit_waits() RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pg_logical_emit_message(true, 'outbox.unchanged', '') WHERE NOT pg_is_in_recovery();
END;
COMMENT ON FUNCTION outbox.commit_waits() IS
    'Has the COMMIT of this transaction wait for the synchronous standbys, as if it had written something.';

CREATE OR REPLACE FUNCTION outbox.unchanged() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM changed) THEN
        PERFORM outbox.commit_waits();
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.unchanged() IS 'Internal: has the COMMIT of a statement that changes no row wait as one that does.';
