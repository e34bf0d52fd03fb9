-- What a role that owns nothing can do with the functions of this schema.

-- A trigger function that runs as its owner must not be borrowed: as a trigger on a table of one's own, workflows_started()
-- would write any history and any job. EXECUTE is asked for when a trigger is made, never when it fires.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT p.oid FROM pg_proc AS p WHERE p.pronamespace = 'outbox'::regnamespace AND p.prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
END $$;

-- These two run as whoever changes the row: an operator of his own, first in his search_path, must not decide whether a
-- version moves.
ALTER FUNCTION outbox.workflow_move_version() SET search_path = pg_catalog, pg_temp;
ALTER FUNCTION outbox.state_changes_are_append_only() SET search_path = pg_catalog, pg_temp;

-- Forgetting takes TRUNCATE and the floor, which nobody else should have: with them an id could be forgotten that is not
-- refused afterwards. This function does both in their order, for those who are granted it.
ALTER FUNCTION outbox.inbox_forget(double precision) SECURITY DEFINER;
REVOKE EXECUTE ON FUNCTION outbox.inbox_forget(double precision) FROM PUBLIC;
