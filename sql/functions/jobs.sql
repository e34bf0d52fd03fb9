-- How a workflow gets its job, and who is told of it.

-- The job that a workflow with this status and data has by its route; no row where it has none. Its times count from now,
-- not from the start of a transaction that may be long. This says once what the
-- columns of a job are made from: the triggers, `outbox deploy` and `outbox retry` take them from here. The planner inlines
-- it, which leaves a join with routes: so it must stay one SELECT, STABLE, and without settings of its own.
CREATE OR REPLACE FUNCTION outbox.job_of(pipeline text, status text, metadata jsonb)
RETURNS TABLE (stage text, run_at timestamptz, due boolean, deadline timestamptz, on_deadline text, partition text, priority integer)
LANGUAGE sql STABLE ROWS 1
AS $$
    SELECT r.stage,
           CASE WHEN r.stage IS NULL THEN clock_timestamp() + r.deadline ELSE clock_timestamp() END,
           r.stage IS NOT NULL,
           clock_timestamp() + r.deadline,
           r.on_deadline,
           CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(job_of.metadata, r.partition) END,
           CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(job_of.metadata, r.priority) END
    FROM outbox.routes AS r
    WHERE r.pipeline = job_of.pipeline AND r.status = job_of.status AND (r.stage IS NOT NULL OR r.on_deadline IS NOT NULL)
$$;
COMMENT ON FUNCTION outbox.job_of(text, text, jsonb) IS
    'Internal: the job that a workflow with this status and data has by its route.';

-- Texts of more than 200 characters are cut: they are names, and stand in an index.
CREATE OR REPLACE FUNCTION outbox.partition_of(metadata jsonb, path text[]) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN cardinality(path) > 0 THEN left(coalesce(metadata #>> path, ''), 200) ELSE '' END;
COMMENT ON FUNCTION outbox.partition_of(jsonb, text[]) IS 'Internal: the partition of a limited stage that data belongs to.';

CREATE OR REPLACE FUNCTION outbox.priority_of(metadata jsonb, path text[]) RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN CASE jsonb_typeof(metadata #> path)
    WHEN 'number' THEN greatest(least((metadata #>> path)::numeric, 2147483647), -2147483648)::integer
    WHEN 'boolean' THEN (metadata #>> path)::boolean::integer
    ELSE 0 END;
COMMENT ON FUNCTION outbox.priority_of(jsonb, text[]) IS 'Internal: the priority within a partition that data has.';

-- Wakes as many of a stage's workers that want it as the stage has more jobs, each on its own channel: no herd, and no NOTIFY
-- (which takes a lock over the whole cluster at commit) while every worker is busy. A job with an `ends[n]` was made by the
-- end of a job of `outbox.worker`, which looks for it by itself. `said` tells whether they are new, or came back with old ids.
CREATE OR REPLACE FUNCTION outbox.wake(pipelines text[], stages text[], ends text[], said text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    worker integer;
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.workers WHERE idle) THEN
        RETURN;
    END IF;
    worker := outbox.told('outbox.worker')::integer;
    PERFORM pg_notify('outbox_' || chosen.id, said)
    FROM (
        SELECT pipeline || '.' || stage AS queue, count(*) AS jobs, bool_and(own IS NOT NULL) AS own
        FROM unnest(pipelines, stages, ends) AS made (pipeline, stage, own)
        WHERE stage IS NOT NULL
        GROUP BY 1
    ) AS made
    CROSS JOIN LATERAL (
        SELECT w.id FROM outbox.workers AS w
        WHERE w.idle AND made.queue = ANY (w.stages) AND NOT (made.own AND w.id IS NOT DISTINCT FROM worker)
        ORDER BY random()
        LIMIT made.jobs
    ) AS chosen;
END
$$;
COMMENT ON FUNCTION outbox.wake(text[], text[], text[], text) IS 'Internal: wakes idle workers for more jobs of these stages.';

CREATE OR REPLACE FUNCTION outbox.wake(pipelines text[], stages text[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$ SELECT outbox.wake(pipelines, stages, NULL, 'back') $$;
COMMENT ON FUNCTION outbox.wake(text[], text[]) IS 'Internal: wakes idle workers for jobs of these stages that came back.';

-- New jobs for workflows that have none; a dead one goes, and its idempotency key stays. It waits for a deploy that is under way,
-- and sees the routes that it has written, since each statement of the function has a snapshot of its own. It runs as the owner:
-- with rights on jobs, an operator could have any handler run on any workflow.
CREATE OR REPLACE FUNCTION outbox.retry(ids uuid[], by text DEFAULT NULL, reason text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    pipelines text[];
    stages    text[];
    retried   uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('outbox.deploy'));
    WITH workflow AS MATERIALIZED (
        -- Ascending, as everywhere.
        SELECT w.id, w.pipeline, w.current_status, w.version, w.metadata
        FROM outbox.workflow_states AS w
        WHERE w.id = ANY (ids)
        ORDER BY w.id
        FOR NO KEY UPDATE
    ), dead AS (
        DELETE FROM outbox.dead_jobs AS d USING workflow
        WHERE d.workflow_id = workflow.id AND d.workflow_id = ANY (ids)
        RETURNING d.workflow_id, d.entered
    ), made AS (
        -- Not from outbox.routed: it would read the workflow as it was before its lock was had.
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, deadline, on_deadline, partition, priority)
        SELECT workflow.id, workflow.pipeline, j.stage, workflow.current_status, coalesce(dead.entered, workflow.version),
               j.deadline, j.on_deadline, j.partition, j.priority
        FROM workflow
        CROSS JOIN LATERAL outbox.job_of(workflow.pipeline, workflow.current_status, workflow.metadata) AS j
        LEFT JOIN dead ON dead.workflow_id = workflow.id
        -- A job that is just dying is seen as live here: its dead one, which is not seen yet, must not get one beside it.
        -- A value, not NOT EXISTS, which is a join, and walks over all of a queue that was analyzed when it was empty.
        WHERE j.stage IS NOT NULL AND (SELECT j.id FROM outbox.jobs AS j WHERE j.workflow_id = workflow.id) IS NULL
        ORDER BY workflow.id
        ON CONFLICT (workflow_id) DO NOTHING
        RETURNING workflow_id, pipeline, stage
    )
    SELECT array_agg(made.workflow_id), array_agg(made.pipeline), array_agg(made.stage) INTO retried, pipelines, stages FROM made;
    IF retried IS NULL THEN
        PERFORM outbox.commit_waits();
        RETURN 0;
    END IF;
    INSERT INTO outbox.actions (action, pipeline, stage, workflow_id, actor, reason)
    SELECT 'retry', m.pipeline, m.stage, m.workflow_id, coalesce(outbox.actor_named(retry.by), outbox.actor()),
           coalesce(retry.reason, nullif(current_setting('outbox.reason', true), ''))
    FROM unnest(retried, pipelines, stages) AS m (workflow_id, pipeline, stage);
    PERFORM outbox.wake(pipelines, stages, NULL, 'new');
    RETURN cardinality(retried);
END
$$;
COMMENT ON FUNCTION outbox.retry(uuid[], text, text) IS
    'Makes new jobs for those of these workflows that have none and whose status a stage takes. Returns how many.';

CREATE OR REPLACE FUNCTION outbox.retry(
    pipeline text, entity_id text, by text DEFAULT NULL, reason text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow uuid;
BEGIN
    SELECT w.id INTO workflow FROM outbox.workflow_states AS w
    WHERE w.pipeline = retry.pipeline AND w.entity_id = retry.entity_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', retry.entity_id, retry.pipeline
            USING ERRCODE = 'OB011', DETAIL = jsonb_build_object('pipeline', retry.pipeline, 'entity_id', retry.entity_id)::text;
    END IF;
    RETURN outbox.retry(ARRAY[workflow], retry.by, retry.reason) > 0;
END
$$;
COMMENT ON FUNCTION outbox.retry(text, text, text, text) IS
    'Makes a new job for a workflow. Returns false if it has a live job, or if no stage takes its status.';
REVOKE EXECUTE ON FUNCTION outbox.retry(uuid[], text, text), outbox.retry(text, text, text, text) FROM PUBLIC;

-- Somebody else's trigger may keep a workflow in its status. Then nothing would end the job, and nothing say why.
CREATE OR REPLACE FUNCTION outbox.require_moved(held bigint, moved bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF moved < held THEN
        RAISE EXCEPTION 'a trigger on outbox.workflow_states has kept % of % workflows in their status', held - moved, held
            USING ERRCODE = 'triggered_data_change_violation';
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.require_moved(bigint, bigint) IS
    'Internal: raises unless all workflows whose jobs are held have moved.';

CREATE OR REPLACE FUNCTION outbox.pause_begins() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    near text;
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.stages AS s WHERE s.pipeline = NEW.pipeline AND s.stage = NEW.stage) THEN
        near := outbox.nearest(NEW.pipeline || '.' || NEW.stage,
                               ARRAY(SELECT s.pipeline || '.' || s.stage FROM outbox.stages AS s));
        RAISE EXCEPTION 'no pipeline that is deployed here has a stage "%.%"', NEW.pipeline, NEW.stage
            USING ERRCODE = 'OB033',
                  DETAIL = jsonb_build_object('pipeline', NEW.pipeline, 'stage', NEW.stage, 'nearest', near)::text,
                  HINT = coalesce('Did you mean "' || near || '"?', 'Deploy the pipeline first.');
    END IF;
    NEW.paused_by := outbox.actor_named(NEW.paused_by);
    NEW.login := session_user;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.pause_begins() IS 'Internal: refuses the pause of a stage that is not there, and notes who has paused one.';

-- The last word before the COMMIT of a handler's transaction. Both are sent in one round trip, so it must be an error that
-- keeps what the handler wrote from being committed: its transaction is another one by now, or a job is not held.
CREATE OR REPLACE FUNCTION outbox.require_held(claim text, jobs integer, held bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF coalesce(current_setting('outbox.claim', true), '') <> claim THEN
        RAISE EXCEPTION 'this is not the transaction that the handler was given'
            USING ERRCODE = 'OB009', DETAIL = jsonb_build_object('claim', claim)::text;
    ELSIF held < jobs THEN
        RAISE EXCEPTION '% of % jobs are no longer held', jobs - held, jobs
            USING ERRCODE = 'OB010', DETAIL = jsonb_build_object('jobs', jobs, 'held', held)::text;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.require_held(text, integer, bigint) IS
    'Internal: raises unless this is the handler''s own transaction and all of its jobs are held.';
