-- What keeps the definition of a pipeline and its workflows together, beside the lock of a deploy.

-- Refuses a transaction that reads the definition of these pipelines as it was before a deploy, or a drop: at a higher isolation
-- level it would go by what is no more. The lock fails on a row that has changed since then, as any change of it would.
CREATE OR REPLACE FUNCTION outbox.definition_require_current(pipelines text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        PERFORM FROM outbox.pipelines AS p WHERE p.pipeline = ANY (pipelines) ORDER BY p.pipeline FOR SHARE;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.definition_require_current(text[]) IS
    'Internal: refuses a transaction that reads the definition of these pipelines as it was before a deploy.';
REVOKE EXECUTE ON FUNCTION outbox.definition_require_current(text[]) FROM PUBLIC;

-- The end of a pipeline.

-- Workflows would be left in a pipeline that no longer exists. The lock has a workflow that starts meanwhile be seen here, or find
-- no pipeline. A tick of a schedule that runs ends first.
CREATE OR REPLACE FUNCTION outbox.pipeline_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    entity text;
BEGIN
    DELETE FROM outbox.schedules AS s WHERE s.pipeline = OLD.pipeline;
    LOCK TABLE outbox.workflow_states IN SHARE ROW EXCLUSIVE MODE;
    SELECT w.entity_id INTO entity FROM outbox.workflow_states AS w WHERE w.pipeline = OLD.pipeline LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'pipeline "%" has workflows, such as entity "%": it can''t be deleted', OLD.pipeline, entity
            USING ERRCODE = 'OB031', DETAIL = jsonb_build_object('pipeline', OLD.pipeline)::text,
                  HINT = format('Drop it with them: outbox drop %s --with-workflows', quote_ident(OLD.pipeline));
    END IF;
    DELETE FROM outbox.routes AS r WHERE r.pipeline = OLD.pipeline;
    DELETE FROM outbox.legal_changes AS l WHERE l.pipeline = OLD.pipeline;
    DELETE FROM outbox.stages AS s WHERE s.pipeline = OLD.pipeline;
    DELETE FROM outbox.limits AS l WHERE l.pipeline = OLD.pipeline;
    DELETE FROM outbox.partition_rates AS r WHERE r.pipeline = OLD.pipeline;
    DELETE FROM outbox.pauses AS p WHERE p.pipeline = OLD.pipeline;
    DELETE FROM outbox.signal_names AS n WHERE n.pipeline = OLD.pipeline;
    DELETE FROM outbox.status_counts AS c WHERE c.pipeline = OLD.pipeline;
    DELETE FROM outbox.status_flow AS f WHERE f.pipeline = OLD.pipeline;
    DELETE FROM outbox.dead_counts AS c WHERE c.pipeline = OLD.pipeline;
    DELETE FROM outbox.error_kinds AS k WHERE k.pipeline = OLD.pipeline;
    RETURN OLD;
END
$$;
COMMENT ON FUNCTION outbox.pipeline_deleted() IS
    'Internal: refuses the end of a pipeline that has workflows, and deletes what belongs to one that has none.';
