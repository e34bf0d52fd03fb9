-- What runs after a change without being a step of the workflow. A reaction is a pipeline of its own, PIPELINE/REACTION, and
-- each change that it reacts to is a workflow in it, started in the transaction of the change. It has its attempts, dead
-- jobs and history, and whatever happens to it never touches the workflow that has changed.

-- Starts the reactions to changes: position n of each array is one change. The id of the workflow is part of their name, since
-- an entity that was deleted and is submitted again begins with version 1 again.
CREATE OR REPLACE FUNCTION outbox.react(ids uuid[], froms text[], tos text[], versions bigint[], actor text, reason text)
RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
    SELECT w.pipeline || '/' || n.name,
           left(w.entity_id, 450) || '@' || c.version || '@' || w.id,
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

-- A reaction that anybody could start would be called with a change that never was, and one that is there already would keep
-- the real one from being called. So only react() starts them, which runs as the owner within a trigger; this function runs
-- with the rights of the role that inserts.
CREATE OR REPLACE FUNCTION outbox.reactions_begin_with_a_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (pg_trigger_depth() = 1 OR current_user <> (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = TG_RELID))
       AND EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = NEW.pipeline AND p.reaction_of IS NOT NULL) THEN
        RAISE EXCEPTION 'pipeline "%" is a reaction: it begins with the change that it reacts to, and can''t be submitted', NEW.pipeline
            USING ERRCODE = 'insufficient_privilege', HINT = 'Change the status of a workflow, or call the function yourself.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.reactions_begin_with_a_change() IS 'Internal: refuses reactions that are not started by a change.';

CREATE OR REPLACE FUNCTION outbox.reactions_forget(days float8, most integer, only_these uuid[], but_these uuid[])
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    deleted integer;
BEGIN
    IF (days >= 7) IS NOT TRUE OR days = 'NaN' THEN
        RAISE EXCEPTION 'reactions are kept for 7 days or more, not %', days USING ERRCODE = '22023';
    END IF;
    PERFORM set_config('outbox.retention', 'on', true);
    WITH old AS MATERIALIZED (
        SELECT w.id
        FROM outbox.pipelines AS p
        JOIN outbox.workflow_states AS w ON w.pipeline = p.pipeline AND w.current_status = 'DONE'
        WHERE p.reaction_of IS NOT NULL AND w.updated_at < now() - make_interval(secs => days * 86400)
          AND (only_these IS NULL OR w.id = ANY (only_these)) AND w.id <> ALL (but_these)
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
COMMENT ON FUNCTION outbox.reactions_forget(float8, integer, uuid[], uuid[]) IS
    'Internal: deletes up to so many reactions, with their history, that are done for more than so many days; returns how many. '
    'Only these of them, unless null, and none of those.';

-- Workers of the release before call it.
CREATE OR REPLACE FUNCTION outbox.reactions_forget(days float8, most integer) RETURNS integer
LANGUAGE sql
RETURN outbox.reactions_forget(days, most, NULL, '{}');
COMMENT ON FUNCTION outbox.reactions_forget(float8, integer) IS
    'Internal: deletes reactions, as the function with four arguments does.';
REVOKE EXECUTE ON FUNCTION outbox.react(uuid[], text[], text[], bigint[], text, text),
    outbox.reactions_forget(float8, integer), outbox.reactions_forget(float8, integer, uuid[], uuid[]) FROM PUBLIC;
