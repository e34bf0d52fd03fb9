-- Fan-out and join: a parent waits for its children. These run as the owner, within triggers; nobody else calls them.

-- Moves a parent whose children have all ended. The caller has locked its row.
CREATE OR REPLACE FUNCTION outbox.children_join(parent uuid) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    target text;
BEGIN
    SELECT CASE WHEN wait.on_failure IS NOT NULL AND EXISTS (
               SELECT FROM outbox.children AS c JOIN outbox.workflow_states AS w ON w.id = c.child_id
               WHERE c.parent_id = parent AND w.current_status = ANY (wait.failed)) THEN wait.on_failure ELSE wait.to_status END
    INTO target
    FROM outbox.waits AS wait WHERE wait.workflow_id = parent AND wait.children <= 0;
    IF FOUND THEN
        PERFORM outbox.workflow_move(parent, target, 'its children have ended');
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.children_join(uuid) IS 'Internal: moves a parent whose children have all ended.';

-- Counts down the children that have ended. The parent's row is locked before its wait is read, so the last two of a
-- hundred that end at once see each other, and the beginning of the wait sees them or is seen.
CREATE OR REPLACE FUNCTION outbox.children_end(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    parent  record;
    at_work integer;
BEGIN
    FOR parent IN
        SELECT c.parent_id AS id, count(*)::integer AS ended FROM outbox.children AS c
        WHERE c.child_id = ANY (ids) GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM FROM outbox.workflow_states AS w WHERE w.id = parent.id FOR NO KEY UPDATE;
        UPDATE outbox.waits AS w SET children = w.children - parent.ended
        WHERE w.workflow_id = parent.id AND w.children IS NOT NULL
        RETURNING w.children INTO at_work;
        IF NOT FOUND THEN
            -- A wait that begins at a higher isolation level would not see this: its commit must fail, and be tried again.
            UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = parent.id;
        ELSIF at_work <= 0 THEN
            PERFORM outbox.children_join(parent.id);
        END IF;
    END LOOP;
    INSERT INTO outbox.orphans (parent_id)
    SELECT DISTINCT c.parent_id FROM outbox.children AS c
    WHERE c.parent_id = ANY (ids) AND c.cancel_to IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION outbox.children_end(uuid[]) IS 'Internal: counts down the children that have ended.';
REVOKE EXECUTE ON FUNCTION outbox.children_join(uuid), outbox.children_end(uuid[]) FROM PUBLIC;
