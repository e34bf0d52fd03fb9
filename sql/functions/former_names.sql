-- Names that a handler says of the statuses of other pipelines: those of its children. Its code may be of before a deploy of
-- their pipeline, or of another application, and say a former name. Own statuses have no need of it: a worker whose code is
-- older than its own pipeline leaves the job to newer ones.

CREATE OR REPLACE FUNCTION outbox.status_now(pipeline text, status text) RETURNS text
LANGUAGE sql STABLE STRICT
RETURN CASE WHEN EXISTS (SELECT FROM outbox.routes AS r WHERE r.pipeline = status_now.pipeline AND r.status = status_now.status)
            THEN status
            ELSE (SELECT p.former_names ->> status_now.status FROM outbox.pipelines AS p WHERE p.pipeline = status_now.pipeline) END;
COMMENT ON FUNCTION outbox.status_now(text, text) IS
    'Internal: returns what a status is called now. Null if the pipeline never had one of this name.';

-- Refuses the name of a status that children don't have. Nothing would ever come to it.
CREATE OR REPLACE FUNCTION outbox.refuse_unknown_of_children(parent uuid, status text, pipelines text[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    workflow outbox.workflow_states;
    listed   text;
BEGIN
    SELECT * INTO workflow FROM outbox.workflow_states AS w WHERE w.id = parent;
    SELECT string_agg(format('pipeline "%s" has %s', h.pipeline, h.statuses), ', ' ORDER BY h.pipeline) INTO listed
    FROM (SELECT r.pipeline, string_agg(r.status, ', ' ORDER BY r.status) AS statuses FROM outbox.routes AS r
          WHERE r.pipeline = ANY (pipelines) GROUP BY r.pipeline) AS h;
    RAISE EXCEPTION 'unknown status: pipeline "%", entity "%" names "%", and its children''s %', workflow.pipeline,
        workflow.entity_id, status, listed
        USING ERRCODE = 'OB003',
              DETAIL = jsonb_build_object('pipeline', workflow.pipeline, 'entity_id', workflow.entity_id, 'from_status', NULL,
                                          'to_status', status)::text,
              HINT = 'Name a status that the children''s pipeline has, or deploy the version that has it.';
END
$$;
COMMENT ON FUNCTION outbox.refuse_unknown_of_children(uuid, text, text[]) IS
    'Internal: refuses the name of a status that the pipelines of children don''t have.';

-- Where children are to be cancelled to, and which of their statuses mean failure, must be names that their pipelines have or
-- had. A parent may have children now of one pipeline and now of another, and name the statuses of both.
CREATE OR REPLACE FUNCTION outbox.spawns_require_known(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    stray record;
BEGIN
    SELECT i.id, c.pipeline, c.cancel INTO stray
    FROM jsonb_to_recordset(items) AS i (id uuid, spawn jsonb)
    CROSS JOIN LATERAL (SELECT DISTINCT c.pipeline, c.cancel
                        FROM jsonb_to_recordset(i.spawn) AS c (pipeline text, cancel text) WHERE c.cancel IS NOT NULL) AS c
    WHERE i.id = ANY (ids) AND outbox.status_now(c.pipeline, c.cancel) IS NULL
      AND EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = c.pipeline)
    LIMIT 1;
    IF FOUND THEN
        PERFORM outbox.refuse_unknown_of_children(stray.id, stray.cancel, ARRAY[stray.pipeline]);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.spawns_require_known(jsonb, uuid[]) IS
    'Internal: refuses to start children that would be cancelled to a status that their pipeline does not have.';

CREATE OR REPLACE FUNCTION outbox.joins_require_known(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    stray record;
BEGIN
    PERFORM outbox.definition_require_current(outbox.pipelines_of_children(i.id))
    FROM jsonb_to_recordset(items) AS i (id uuid, "join" boolean, failed text[])
    WHERE current_setting('transaction_isolation') <> 'read committed'
      AND i."join" AND i.id = ANY (ids) AND cardinality(i.failed) > 0;
    SELECT i.id, f.status, i.pipelines INTO stray
    FROM (SELECT i.id, i.failed, outbox.pipelines_of_children(i.id) AS pipelines
          FROM jsonb_to_recordset(items) AS i (id uuid, "join" boolean, failed text[])
          WHERE i."join" AND i.id = ANY (ids) AND cardinality(i.failed) > 0 OFFSET 0) AS i
    CROSS JOIN LATERAL unnest(i.failed) AS f (status)
    WHERE i.pipelines IS NOT NULL
      AND NOT EXISTS (SELECT FROM outbox.pipelines AS p WHERE outbox.status_now(p.pipeline, f.status) IS NOT NULL)
    LIMIT 1;
    IF FOUND THEN
        PERFORM outbox.refuse_unknown_of_children(stray.id, stray.status, stray.pipelines);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.joins_require_known(jsonb, uuid[]) IS
    'Internal: refuses waits for children that would have failed in a status that no pipeline has.';
REVOKE EXECUTE ON FUNCTION outbox.status_now(text, text), outbox.refuse_unknown_of_children(uuid, text, text[]),
    outbox.spawns_require_known(jsonb, uuid[]), outbox.joins_require_known(jsonb, uuid[]) FROM PUBLIC;
