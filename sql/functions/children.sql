-- Fan-out and join: a parent waits for its children. These functions run as the owner; only triggers call them.

-- Starts the children that handlers have spawned: items with `spawn`. A workflow that exists already is left alone, and does
-- not become a child by this. Workers' sessions switch hash joins off, and pairing 20,000 children with their parents without
-- one is quadratic.
CREATE OR REPLACE FUNCTION outbox.children_spawn(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
SET enable_hashjoin = on
AS $$
BEGIN
    WITH wanted AS MATERIALIZED (
        SELECT DISTINCT ON (c.pipeline, c.entity) i.id AS parent_id, c.pipeline, c.entity, c.data::jsonb, c.cancel, c.n
        FROM jsonb_to_recordset(items) AS i (id uuid, spawn jsonb)
        CROSS JOIN LATERAL ROWS FROM (jsonb_to_recordset(i.spawn) AS (pipeline text, entity text, data text, cancel text))
            WITH ORDINALITY AS c (pipeline, entity, data, cancel, n)
        WHERE i.id = ANY (ids)
        ORDER BY c.pipeline, c.entity, i.id
    ), made AS (
        INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
        SELECT w.pipeline, w.entity, outbox.data_of_code(w.data, p.plain)
        FROM wanted AS w LEFT JOIN outbox.pipelines AS p ON p.pipeline = w.pipeline
        ORDER BY w.parent_id, w.n
        ON CONFLICT (pipeline, entity_id) DO NOTHING
        RETURNING id, pipeline, entity_id
    )
    INSERT INTO outbox.children (child_id, parent_id, cancel_to)
    SELECT m.id, w.parent_id, outbox.status_now(w.pipeline, w.cancel)
    FROM made AS m JOIN wanted AS w ON w.pipeline = m.pipeline AND w.entity = m.entity_id;
END
$$;
COMMENT ON FUNCTION outbox.children_spawn(jsonb, uuid[]) IS 'Internal: starts the children that handlers have spawned.';

CREATE OR REPLACE FUNCTION outbox.pipelines_of_children(parent uuid) RETURNS text[]
LANGUAGE sql STABLE
RETURN (SELECT array_agg(DISTINCT w.pipeline) FROM outbox.children AS c
        JOIN outbox.workflow_states AS w ON w.id = c.child_id WHERE c.parent_id = parent);
COMMENT ON FUNCTION outbox.pipelines_of_children(uuid) IS 'Internal: returns the pipelines that the children of a workflow are in.';

-- Begins the waits for children that handlers have returned: items with `join`. A wait ends at once if all have ended.
CREATE OR REPLACE FUNCTION outbox.children_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    parent uuid;
BEGIN
    FOR parent IN
        WITH made AS (
            INSERT INTO outbox.waits (workflow_id, children, to_status, failed, on_failure)
            SELECT i.id, (SELECT count(*)::integer FROM outbox.children AS c
                          JOIN outbox.workflow_states AS w ON w.id = c.child_id
                          JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
                          WHERE c.parent_id = i.id AND NOT r.final), i.to_status,
                   -- A child of another pipeline may have the former name: it stays beside the present one.
                   i.failed || ARRAY(SELECT DISTINCT outbox.status_now(p.pipeline, f.status)
                                     FROM unnest(i.failed) AS f (status),
                                          unnest(CASE WHEN cardinality(i.failed) > 0 THEN outbox.pipelines_of_children(i.id) END)
                                              AS p (pipeline)
                                     WHERE outbox.status_now(p.pipeline, f.status) <> f.status),
                   i.on_failure
            FROM jsonb_to_recordset(items) AS i (id uuid, "join" boolean, to_status text, failed text[], on_failure text)
            WHERE i."join" AND i.id = ANY (ids)
            ORDER BY i.id
            RETURNING workflow_id, children
        )
        SELECT made.workflow_id FROM made WHERE made.children = 0 ORDER BY 1
    LOOP
        PERFORM outbox.children_join(parent);
    END LOOP;
END
$$;
COMMENT ON FUNCTION outbox.children_begin(jsonb, uuid[]) IS 'Internal: begins the waits for children that handlers have returned.';

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
            -- The parent's trouble is the parent's: that it can't move must not keep its child from ending. It waits on, and
            -- maintenance tries again. What may pass by itself concerns the whole transaction.
            BEGIN
                PERFORM outbox.children_join(parent.id);
            EXCEPTION WHEN OTHERS THEN
                IF left(SQLSTATE, 2) IN ('08', '40', '53', '55', '57', '58') THEN
                    RAISE;
                END IF;
            END;
        END IF;
    END LOOP;
    INSERT INTO outbox.orphans (parent_id)
    SELECT DISTINCT c.parent_id FROM outbox.children AS c
    WHERE c.parent_id = ANY (ids) AND c.cancel_to IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION outbox.children_end(uuid[]) IS 'Internal: counts down the children that have ended.';

-- Moves parents whose children have all ended and that could not be moved then: up to `most`, of these (null: any) without
-- those. Returns how many. A parent that somebody has locked has its turn later.
CREATE OR REPLACE FUNCTION outbox.parents_join(only_these uuid[], without uuid[], most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    parent uuid;
    joined integer := 0;
BEGIN
    PERFORM set_config('outbox.actor', 'outbox', true);
    FOR parent IN
        SELECT w.id FROM outbox.waits AS wait
        CROSS JOIN LATERAL (SELECT w.id FROM outbox.workflow_states AS w WHERE w.id = wait.workflow_id
                            FOR NO KEY UPDATE SKIP LOCKED) AS w
        WHERE wait.children <= 0 AND (only_these IS NULL OR wait.workflow_id = ANY (only_these))
          AND wait.workflow_id <> ALL (without)
        ORDER BY wait.workflow_id
        LIMIT most
    LOOP
        PERFORM outbox.children_join(parent);
        joined := joined + 1;
    END LOOP;
    RETURN joined;
END
$$;
COMMENT ON FUNCTION outbox.parents_join(uuid[], uuid[], integer) IS
    'Internal: moves parents whose children have ended and that could not be moved then.';
REVOKE EXECUTE ON FUNCTION outbox.parents_join(uuid[], uuid[], integer), outbox.children_spawn(jsonb, uuid[]), outbox.children_begin(jsonb, uuid[]),
    outbox.children_join(uuid), outbox.children_end(uuid[]), outbox.pipelines_of_children(uuid) FROM PUBLIC;
