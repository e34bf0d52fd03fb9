-- What runs after a change without being a step of the workflow. A reaction is a pipeline of its own, PIPELINE/REACTION, and
-- each change that it reacts to is a workflow in it, started in the transaction of the change. It has its attempts, dead
-- jobs and history, and whatever happens to it never touches the workflow that has changed.

-- Starts the reactions to changes: position n of each array is one change.
CREATE OR REPLACE FUNCTION outbox.react(ids uuid[], froms text[], tos text[], versions bigint[], actor text, reason text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
    SELECT w.pipeline || '/' || n.name,
           CASE WHEN char_length(w.entity_id) <= 480 THEN w.entity_id ELSE w.id::text END || '@' || c.version,
           jsonb_build_object('pipeline', w.pipeline, 'entity_id', w.entity_id, 'workflow_id', w.id, 'from_status', c.from_status,
                              'status', c.to_status, 'version', c.version, 'actor', react.actor, 'reason', react.reason,
                              'at', (SELECT h.at FROM outbox.state_changes AS h WHERE h.workflow_id = c.id AND h.version = c.version), 'data', w.metadata)
    FROM unnest(ids, froms, tos, versions) AS c (id, from_status, to_status, version)
    JOIN outbox.workflow_states AS w ON w.id = c.id
    JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = c.to_status
    CROSS JOIN LATERAL unnest(r.reactions) AS n (name)
    ORDER BY c.id, n.name
    ON CONFLICT (pipeline, entity_id) DO NOTHING;
END
$$;
COMMENT ON FUNCTION outbox.react(uuid[], text[], text[], bigint[], text, text) IS 'Internal: starts the reactions to changes.';

CREATE OR REPLACE FUNCTION outbox.reactions_forget(days float8, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deleted integer;
BEGIN
    PERFORM set_config('outbox.retention', 'on', true);
    WITH old AS MATERIALIZED (
        SELECT w.id
        FROM outbox.pipelines AS p
        JOIN outbox.workflow_states AS w ON w.pipeline = p.pipeline AND w.current_status = 'DONE'
        WHERE p.reaction_of IS NOT NULL AND w.updated_at < now() - make_interval(secs => days * 86400)
        LIMIT most
        FOR UPDATE OF w SKIP LOCKED
    ), history AS (
        DELETE FROM outbox.state_changes AS c USING old WHERE c.workflow_id = old.id
    ), gone AS (
        DELETE FROM outbox.workflow_states AS w USING old WHERE w.id = old.id RETURNING 1
    )
    SELECT count(*) INTO deleted FROM gone;
    PERFORM set_config('outbox.retention', '', true);
    RETURN deleted;
END
$$;
COMMENT ON FUNCTION outbox.reactions_forget(float8, integer) IS
    'Internal: deletes up to so many reactions, with their history, that are done for more than so many days; returns how many.';
REVOKE EXECUTE ON FUNCTION outbox.react(uuid[], text[], text[], bigint[], text, text),
    outbox.reactions_forget(float8, integer) FROM PUBLIC;
