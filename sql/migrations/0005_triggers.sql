-- The orchestrator. Whoever changes a status, the same transaction gets a row of history, the end of the
-- job that was open, and the job of the stage that comes next.
--
-- Statement-level with transition tables, so a batch costs one execution. SECURITY DEFINER, so that a role
-- which may change a status needs no right on history and jobs, and can't bypass them. The planner's
-- switches are fixed: a plan cached while the tables were empty must not scan them when they are full.
-- Switching scans off makes plans look dear, and a server with LLVM would compile each of them: hence no JIT.

CREATE FUNCTION outbox.actor() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(
    nullif(current_setting('outbox.actor', true), ''),
    nullif(current_setting('role', true), 'none'),
    session_user::text);

-- Wakes as many idle workers of a stage as it has new jobs, each on its own channel: no herd, and no
-- NOTIFY (which takes a lock over the whole cluster at commit) while everybody is busy.
CREATE FUNCTION outbox.wake(pipelines text[], stages text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM outbox.workers WHERE idle) THEN
        RETURN;
    END IF;
    PERFORM pg_notify('outbox_' || chosen.id, '')
    FROM (
        SELECT pipeline || '.' || stage AS queue, count(*) AS jobs
        FROM unnest(pipelines, stages) AS made (pipeline, stage)
        WHERE stage IS NOT NULL
        GROUP BY 1
    ) AS made
    CROSS JOIN LATERAL (
        SELECT w.id FROM outbox.workers AS w
        WHERE w.idle AND made.queue = ANY (w.stages)
        ORDER BY random()
        LIMIT made.jobs
    ) AS chosen;
END
$$;

-- Fills in what a plain INSERT leaves out: the status is the pipeline's initial one.
CREATE FUNCTION outbox.workflow_fill_initial() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NEW.current_status IS NULL THEN
        SELECT p.initial_status INTO NEW.current_status FROM outbox.pipelines AS p WHERE p.pipeline = NEW.pipeline;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to its initial status)',
                NEW.pipeline, NEW.entity_id
                USING ERRCODE = 'OB002', HINT = 'Deploy it first: outbox deploy --app module:object';
        END IF;
    END IF;
    NEW.version := 1;
    NEW.updated_at := NEW.created_at;
    RETURN NEW;
END
$$;

CREATE TRIGGER workflow_fill_initial
    BEFORE INSERT ON outbox.workflow_states
    FOR EACH ROW WHEN (NEW.current_status IS NULL OR NEW.version <> 1)
    EXECUTE FUNCTION outbox.workflow_fill_initial();

-- Moves version and updated_at, whatever the statement said of them, and keeps identity fixed.
CREATE FUNCTION outbox.workflow_move_version() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF (NEW.id, NEW.pipeline, NEW.entity_id) IS DISTINCT FROM (OLD.id, OLD.pipeline, OLD.entity_id) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": id, pipeline and entity_id of a workflow can''t be changed',
            OLD.pipeline, OLD.entity_id
            USING ERRCODE = 'OB004', HINT = 'Start a new workflow, and end this one.';
    END IF;
    IF NEW.current_status = OLD.current_status AND NEW.metadata = OLD.metadata THEN
        NEW.version := OLD.version;
        NEW.updated_at := OLD.updated_at;
    ELSE
        NEW.version := OLD.version + 1;
        NEW.updated_at := now();
    END IF;
    RETURN NEW;
END
$$;

-- The engine's own statements move the version themselves, which spares them a call for each row.
CREATE TRIGGER workflow_move_version
    BEFORE UPDATE ON outbox.workflow_states
    FOR EACH ROW
    WHEN (NEW.version <> OLD.version + 1 OR NEW.current_status = OLD.current_status
          OR NEW.updated_at <> now() OR NEW.id <> OLD.id
          OR NEW.pipeline <> OLD.pipeline OR NEW.entity_id <> OLD.entity_id)
    EXECUTE FUNCTION outbox.workflow_move_version();

CREATE FUNCTION outbox.workflows_started() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    stranger  record;
    pipelines text[];
    stages    text[];
BEGIN
    SELECT s.pipeline, s.entity_id, s.current_status,
           EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = s.pipeline) AS known
    INTO stranger
    FROM new_rows AS s
    LEFT JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
    WHERE r.status IS NULL
    LIMIT 1;
    IF FOUND AND NOT stranger.known THEN
        RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to "%")',
            stranger.pipeline, stranger.entity_id, stranger.current_status
            USING ERRCODE = 'OB002', HINT = 'Deploy it first: outbox deploy --app module:object';
    ELSIF FOUND THEN
        RAISE EXCEPTION 'unknown status: pipeline "%", entity "%", from null to "%"',
            stranger.pipeline, stranger.entity_id, stranger.current_status
            USING ERRCODE = 'OB003', HINT = 'outbox.routes lists the statuses that the pipeline knows.';
    END IF;

    INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, reason)
    SELECT s.id, s.current_status, s.version, actor, reason FROM new_rows AS s;

    WITH made AS (
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version)
        SELECT s.id, s.pipeline, r.stage, s.current_status, s.version
        FROM new_rows AS s
        JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
        WHERE r.stage IS NOT NULL
        RETURNING pipeline, stage
    )
    SELECT array_agg(made.pipeline), array_agg(made.stage) INTO pipelines, stages FROM made;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT s.pipeline, s.current_status, count(*) FROM new_rows AS s GROUP BY s.pipeline, s.current_status;

    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;

CREATE TRIGGER workflows_started
    AFTER INSERT ON outbox.workflow_states
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_started();

CREATE FUNCTION outbox.workflows_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    worker    integer := nullif(current_setting('outbox.worker', true), '')::integer;
    -- The changed workflows as parallel arrays: position n of each is workflow n.
    ids       uuid[];
    pipelines text[];
    froms     text[];
    tos       text[];
    versions  bigint[];
    stages    text[];     -- the stage that must run next; null where there is none
    by_stages text[];     -- the stage and the attempt that made the change, if it was this worker's job
    attempts  integer[];
    ending    uuid[];     -- whose open job ends
    keeping   uuid[];     -- whose job goes on: the new status is the in-progress one of its stage
    unknown   uuid;
    illegal   uuid;
    ended     integer := 0;
    n         integer;
BEGIN
    -- Old and new rows are kept side by side, so they pair by position; a join would be planned once for the
    -- size of the session's first statement, and be quadratic in a bulk UPDATE. Jobs come and go only under
    -- the lock of their workflow's row, which this statement holds: what is read here stays true.
    SELECT array_agg(c.id), array_agg(c.pipeline), array_agg(c.from_status), array_agg(c.to_status),
           array_agg(c.version),
           array_agg(CASE WHEN r.running AND r.stage = j.stage THEN NULL ELSE r.stage END),
           array_agg(CASE WHEN j.owner = worker THEN j.stage END),
           array_agg(CASE WHEN j.owner = worker THEN j.attempt END),
           array_agg(c.id) FILTER (WHERE j.stage IS NOT NULL AND NOT (r.running AND r.stage = j.stage)),
           array_agg(c.id) FILTER (WHERE r.running AND r.stage = j.stage),
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping, unknown, illegal
    FROM (SELECT array_agg(o.id) AS ids, array_agg(o.current_status) AS statuses FROM old_rows AS o) AS o,
         (SELECT array_agg(n.id) AS ids, array_agg(n.pipeline) AS pipelines,
                 array_agg(n.current_status) AS statuses, array_agg(n.version) AS versions
          FROM new_rows AS n) AS n,
         unnest(o.ids, o.statuses, n.ids, n.pipelines, n.statuses, n.versions)
             AS c (old_id, from_status, id, pipeline, to_status, version)
         LEFT JOIN outbox.legal_changes AS l
             ON l.pipeline = c.pipeline AND l.from_status = c.from_status AND l.to_status = c.to_status
         LEFT JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status
         LEFT JOIN outbox.jobs AS j ON j.workflow_id = c.id
    WHERE c.from_status <> c.to_status;

    IF ids IS NULL THEN
        RETURN NULL;  -- only metadata has changed, or nothing
    END IF;

    IF unknown IS NOT NULL OR illegal IS NOT NULL THEN
        n := array_position(ids, coalesce(unknown, illegal));
        RAISE EXCEPTION '%: pipeline "%", entity "%", from "%" to "%"',
            CASE WHEN unknown IS NULL THEN 'illegal change' ELSE 'unknown status' END, pipelines[n],
            (SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.id = ids[n]), froms[n], tos[n]
            USING ERRCODE = CASE WHEN unknown IS NULL THEN 'OB001' ELSE 'OB003' END,
                  HINT = 'outbox.legal_changes lists the changes that the pipeline allows; '
                      || 'Pipeline.allow() and `outbox deploy` add to it.';
    END IF;

    IF ending IS NOT NULL THEN
        DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ending);
        GET DIAGNOSTICS ended = ROW_COUNT;
    END IF;
    -- A live job and a dead one exclude each other. What was asked of a person is answered by the change.
    IF ended < cardinality(ids) THEN
        DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    END IF;
    IF keeping IS NOT NULL THEN
        UPDATE outbox.jobs AS j SET status = c.to_status
        FROM unnest(ids, tos) AS c (id, to_status)
        WHERE j.workflow_id = c.id AND c.id = ANY (keeping);
    END IF;

    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, reason, stage, attempt)
    SELECT c.id, c.from_status, c.to_status, c.version, actor, reason, c.stage, c.attempt
    FROM unnest(ids, froms, tos, versions, by_stages, attempts) AS c (id, from_status, to_status, version, stage, attempt);

    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version)
    SELECT c.id, c.pipeline, c.stage, c.to_status, c.version
    FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
    WHERE c.stage IS NOT NULL;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT c.pipeline, s.status, sum(s.workflows)
    FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
    CROSS JOIN LATERAL (VALUES (c.from_status, -1), (c.to_status, 1)) AS s (status, workflows)
    GROUP BY c.pipeline, s.status HAVING sum(s.workflows) <> 0;

    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;

CREATE TRIGGER workflows_changed
    AFTER UPDATE ON outbox.workflow_states
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_changed();

-- A workflow that is deleted takes its job along; its history stays until retention.
CREATE FUNCTION outbox.workflows_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    ids uuid[];
BEGIN
    SELECT array_agg(o.id) INTO ids FROM old_rows AS o;
    DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ids);
    DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT o.pipeline, o.current_status, -count(*) FROM old_rows AS o GROUP BY o.pipeline, o.current_status;
    RETURN NULL;
END
$$;

CREATE TRIGGER workflows_deleted
    AFTER DELETE ON outbox.workflow_states
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.workflows_deleted();

-- The audit trail is append-only. Retention says so with a setting of its own transaction, and may only delete.
CREATE FUNCTION outbox.state_changes_are_append_only() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('outbox.retention', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'outbox.% is append-only: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'OB005', HINT = 'Old history goes by retention: outbox worker --keep-history DAYS.';
END
$$;

CREATE TRIGGER state_changes_are_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.state_changes
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();
CREATE TRIGGER workflow_states_are_not_truncated
    BEFORE TRUNCATE ON outbox.workflow_states
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.state_changes_are_append_only();
