-- Sessions that handlers are given.

-- Does what DISCARD ALL does, except that it keeps the plans of statements, and what psycopg has prepared, and that it can
-- be sent together with the COMMIT before it. No search_path of its own: that would be put back at the end, to what it was.
CREATE OR REPLACE FUNCTION outbox.session_clean(names text[], vals text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    made text;
BEGIN
    RESET SESSION AUTHORIZATION;
    RESET ROLE;
    RESET ALL;
    EXECUTE 'CLOSE ALL';
    UNLISTEN *;
    DISCARD TEMP;
    DISCARD SEQUENCES;
    PERFORM pg_catalog.pg_advisory_unlock_all();
    FOR made IN SELECT p.name FROM pg_catalog.pg_prepared_statements AS p WHERE p.from_sql LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', made);
    END LOOP;
    PERFORM pg_catalog.set_config(s.name, s.val, false) FROM ROWS FROM (pg_catalog.unnest(names), pg_catalog.unnest(vals)) AS s (name, val)
    WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL;
END $$;
COMMENT ON FUNCTION outbox.session_clean(text[], text[]) IS
    'Internal: forgets what a handler has left in its session.';
