-- The orchestrator: the trigger functions of outbox.workflow_states, and nothing else. Whatever changes a status, the same
-- transaction gets a row of history, the end of the job that was open, and the job of the stage that comes next.
--
-- The triggers are for each statement, with transition tables, so a batch costs one execution. SECURITY DEFINER, so that a
-- role that may change a status needs no right on history and jobs, and can't bypass them. The planner's switches are fixed:
-- a plan that was cached while the tables were empty must not scan them when they are full. Switching scans off makes plans
-- look expensive, and a server with LLVM would compile each of them: hence no JIT.
--
-- A pipeline without waits, limits and reactions pays for a look at some empty arrays.
--
-- Others have triggers on this table, too. One that moves or deletes the workflow before these have told of the first change
-- has these run for the second change first: then the first is `over` when it is told. It has its history, its counts and its
-- reactions, and gets no job, no deadline and no wait.

-- Fills in what a plain INSERT leaves out: the status is the pipeline's initial one, and the data has the version that the
-- pipeline says of such writers.
CREATE OR REPLACE FUNCTION outbox.workflow_fill_initial() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    initial text;
    plain   integer;
    door    jsonb;
BEGIN
    SELECT p.initial_status, p.plain, p.door INTO initial, plain, door FROM outbox.pipelines AS p WHERE p.pipeline = NEW.pipeline;
    NEW.metadata := outbox.data_stamped(NEW.metadata, plain);
    IF door IS NOT NULL AND outbox.told('outbox.worker') IS NULL THEN
        PERFORM outbox.data_check(NEW.pipeline, NEW.entity_id, NEW.metadata, door);
    END IF;
    IF NEW.current_status IS NULL THEN
        NEW.current_status := initial;
        IF initial IS NULL THEN
            RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to its initial status)',
                NEW.pipeline, NEW.entity_id
                USING ERRCODE = 'OB002',
                      DETAIL = jsonb_build_object('pipeline', NEW.pipeline, 'entity_id', NEW.entity_id, 'from_status', NULL,
                                                  'to_status', NULL)::text,
                      HINT = 'Deploy it first: outbox deploy --app module:object';
        END IF;
    END IF;
    NEW.version := 1;
    NEW.updated_at := NEW.created_at;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.workflow_fill_initial() IS 'Internal: fills in the initial status.';

-- Moves version and updated_at, whatever the statement said of them, keeps the identity fixed, and refuses what is older. It runs with the
-- rights of the role that changes the row, and a fixed search_path: a role's own operator must not decide whether a version
-- moves.
CREATE OR REPLACE FUNCTION outbox.workflow_move_version() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    door jsonb;
BEGIN
    IF (NEW.id, NEW.pipeline, NEW.entity_id) IS DISTINCT FROM (OLD.id, OLD.pipeline, OLD.entity_id) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": id, pipeline and entity_id of a workflow can''t be changed',
            OLD.pipeline, OLD.entity_id
            USING ERRCODE = 'OB004',
                  DETAIL = jsonb_build_object('pipeline', OLD.pipeline, 'entity_id', OLD.entity_id)::text,
                  HINT = 'Start a new workflow, and end this one.';
    END IF;
    -- A row that was read earlier, and is written back whole, as an ORM does, would undo what others have changed meanwhile.
    IF NEW.version < OLD.version THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": this UPDATE names version %, which is older than the table''s, version %',
            OLD.pipeline, OLD.entity_id, NEW.version, OLD.version
            USING ERRCODE = 'OB030',
                  DETAIL = jsonb_build_object('pipeline', OLD.pipeline, 'entity_id', OLD.entity_id, 'version', OLD.version,
                                              'older', NEW.version)::text,
                  HINT = 'Read the row again, and repeat the change; or leave version out of the UPDATE.';
    END IF;
    -- A writer that states no version has replaced data that had one. Where there was none, it says nothing of the shape.
    IF OLD.metadata ? '$version' AND NOT NEW.metadata ? '$version' THEN
        NEW.metadata := outbox.data_stamped(NEW.metadata, outbox.plain_of(NEW.pipeline));
    END IF;
    IF NEW.metadata IS DISTINCT FROM OLD.metadata AND outbox.told('outbox.worker') IS NULL AND outbox.told('outbox.erasing') IS NULL THEN
        door := outbox.door_of(NEW.pipeline);
        IF door IS NOT NULL THEN
            PERFORM outbox.data_check(NEW.pipeline, NEW.entity_id, NEW.metadata, door);
        END IF;
    END IF;
    IF NEW.current_status = OLD.current_status AND NEW.metadata = OLD.metadata THEN
        NEW.version := OLD.version;
        NEW.updated_at := OLD.updated_at;
    ELSE
        NEW.version := OLD.version + 1;
        NEW.updated_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION outbox.workflow_move_version() IS 'Internal: moves the version, and keeps the identity fixed.';

-- A workflow starts: the steps of a change, below, as far as they apply.
CREATE OR REPLACE FUNCTION outbox.workflows_started() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    stranger  record;
    told      jsonb;
    pipelines text[];
    stages    text[];
    started   integer;
    taken     integer;    -- how many of them have the job of a stage
    reacting  boolean;
    notifying boolean;
BEGIN
    -- 2. Refuse what is unknown.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM outbox.definition_require_current(array_agg(DISTINCT s.pipeline)) FROM new_rows AS s;
    END IF;
    SELECT s.pipeline, s.entity_id, s.current_status,
           EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = s.pipeline) AS known
    INTO stranger
    FROM new_rows AS s
    LEFT JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
    WHERE r.status IS NULL
    LIMIT 1;
    IF FOUND THEN
        told := jsonb_build_object('pipeline', stranger.pipeline, 'entity_id', stranger.entity_id, 'from_status', NULL,
                                   'to_status', stranger.current_status);
        IF NOT stranger.known THEN
            RAISE EXCEPTION 'unknown pipeline "%": entity "%" can''t start (from status null to "%")',
                stranger.pipeline, stranger.entity_id, stranger.current_status
                USING ERRCODE = 'OB002', DETAIL = told::text, HINT = 'Deploy it first: outbox deploy --app module:object';
        END IF;
        RAISE EXCEPTION 'unknown status: pipeline "%", entity "%", from null to "%"',
            stranger.pipeline, stranger.entity_id, stranger.current_status
            USING ERRCODE = 'OB003', DETAIL = told::text,
                  HINT = 'outbox.routes lists the statuses that the pipeline knows.';
    END IF;

    -- 5. History.
    INSERT INTO outbox.state_changes (workflow_id, to_status, version, actor, reason)
    SELECT s.id, s.current_status, s.version, actor, reason FROM new_rows AS s;
    GET DIAGNOSTICS started = ROW_COUNT;
    IF started = 0 THEN
        PERFORM outbox.commit_waits();  -- all of them were there already
        RETURN NULL;
    END IF;

    PERFORM outbox.blobs_use(array_agg(s.id)) FROM new_rows AS s HAVING EXISTS (SELECT FROM outbox.blobs);

    -- 6 and 7. The first job, with its deadline.
    WITH made AS (
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, run_at, due, deadline, on_deadline,
                                 partition, priority)
        SELECT s.id, s.pipeline, j.stage, s.current_status, s.version, j.run_at, j.due, j.deadline, j.on_deadline,
               j.partition, j.priority
        FROM new_rows AS s
        CROSS JOIN LATERAL outbox.job_of(s.pipeline, s.current_status, s.metadata) AS j
        WHERE (SELECT w.version FROM outbox.workflow_states AS w WHERE w.id = s.id) = s.version  -- it is not over
        RETURNING pipeline, stage
    )
    SELECT array_agg(made.pipeline), array_agg(made.stage), count(made.stage) INTO pipelines, stages, taken FROM made;
    IF taken < started THEN
        PERFORM outbox.rest_begin(array_agg(s.id)) FROM new_rows AS s;
    END IF;

    -- 8. Counts.
    INSERT INTO outbox.status_counts (pipeline, status, workflows, came)
    SELECT s.pipeline, s.current_status, count(*), count(*) FROM new_rows AS s GROUP BY s.pipeline, s.current_status;

    -- 9. Reactions, and who wants to know.
    SELECT bool_or(r.reactions IS NOT NULL), bool_or(r.notify) INTO reacting, notifying
    FROM new_rows AS s JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status;
    IF reacting THEN
        PERFORM outbox.react(array_agg(s.id), array_agg(NULL::text), array_agg(s.current_status), array_agg(s.version), actor, reason)
        FROM new_rows AS s;
    END IF;
    IF notifying THEN
        PERFORM outbox.statuses_notify(array_agg(s.id), array_agg(s.pipeline), array_agg(s.current_status), array_agg(s.version))
        FROM new_rows AS s;
    END IF;

    -- 11. Wake workers for the new jobs.
    PERFORM outbox.wake(pipelines, stages, NULL, 'new');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.workflows_started() IS 'Internal: what the start of a workflow does.';

-- A status changes.
CREATE OR REPLACE FUNCTION outbox.workflows_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    worker    integer := outbox.told('outbox.worker')::integer;
    -- The changed workflows as parallel arrays: position n of each is workflow n.
    ids       uuid[];
    pipelines text[];
    froms     text[];
    tos       text[];
    versions  bigint[];
    stages    text[];     -- the stage that must run next; null where there is none
    by_stages text[];     -- the stage and the attempt that made the change, if it was this worker's job
    attempts  integer[];
    -- What becomes of each: arrays of ids, null where there are none.
    ending    uuid[];     -- their open job ends
    keeping   uuid[];     -- their job goes on: the new status is the in-progress one of its stage
    waited    uuid[];     -- no stage was at work, or its job is parked, so they may have waited for something
    timed     uuid[];     -- their new status has a deadline
    resting   uuid[];     -- no stage takes their new status, and it is not final
    final     uuid[];     -- they have ended
    limited   uuid[];     -- their next stage is limited
    over      uuid[];     -- they have moved on already
    early     jsonb;      -- stage and attempt of jobs that end here, before the change that they have made is told
    rows      integer;    -- rows of the statement, including those whose status stays as it is
    reacting  boolean;    -- whether anything reacts to these changes
    notifying boolean;    -- whether anybody wants to be told of them
    unknown   uuid;
    illegal   uuid;
    ended     integer := 0;
    n         integer;
BEGIN
    -- To read data for hashes is dear: only where it has changed. A full join is never made row by row, whatever it was planned for.
    IF EXISTS (SELECT FROM outbox.blobs) THEN
        PERFORM outbox.blobs_use(array_agg(n.id)) FROM old_rows AS o FULL JOIN new_rows AS n ON n.id = o.id
        WHERE o.metadata IS DISTINCT FROM n.metadata HAVING count(n.id) > 0;
    END IF;

    -- 1. What has changed, and what becomes of each.
    --
    -- Old and new rows are kept side by side, so they pair by position. A join would be planned once for the size of the
    -- session's first statement, and be quadratic in a bulk UPDATE. Jobs come and go only under the lock of their
    -- workflow's row, which this statement holds: what is read here stays true.
    SELECT array_agg(c.id), array_agg(c.pipeline), array_agg(c.from_status), array_agg(c.to_status),
           array_agg(c.version),
           array_agg(CASE WHEN r.running AND j.goes_on OR j.over THEN NULL ELSE r.stage END),
           array_agg(CASE WHEN j.owner = worker AND j.status = c.from_status THEN j.stage END),
           array_agg(CASE WHEN j.owner = worker AND j.status = c.from_status THEN j.attempt END),
           array_agg(c.id) FILTER (WHERE j.id IS NOT NULL AND (r.running AND j.goes_on) IS NOT TRUE AND NOT j.over),
           array_agg(c.id) FILTER (WHERE r.running AND j.goes_on AND NOT j.over),
           array_agg(c.id) FILTER (WHERE j.stage IS NULL OR j.over OR j.due IS NULL),
           array_agg(c.id) FILTER (WHERE r.on_deadline IS NOT NULL AND NOT j.over),
           array_agg(c.id) FILTER (WHERE r.stage IS NULL AND NOT r.final AND NOT j.over),
           array_agg(c.id) FILTER (WHERE r.final),
           array_agg(c.id) FILTER (WHERE r.partition IS NOT NULL AND NOT r.running AND NOT j.over),
           array_agg(c.id) FILTER (WHERE j.over),
           jsonb_object_agg(c.id, jsonb_build_object('status', j.status, 'stage', j.stage, 'attempt', j.attempt))
               FILTER (WHERE j.owner = worker AND j.status <> c.from_status),
           max(cardinality(n.ids)),
           bool_or(r.reactions IS NOT NULL),
           bool_or(r.notify),
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping,
         waited, timed, resting, final, limited, over, early, rows, reacting, notifying, unknown, illegal
    FROM (SELECT array_agg(o.id) AS ids, array_agg(o.current_status) AS statuses FROM old_rows AS o) AS o,
         (SELECT array_agg(n.id) AS ids, array_agg(n.pipeline) AS pipelines,
                 array_agg(n.current_status) AS statuses, array_agg(n.version) AS versions
          FROM new_rows AS n) AS n,
         unnest(o.ids, o.statuses, n.ids, n.pipelines, n.statuses, n.versions)
             AS c (old_id, from_status, id, pipeline, to_status, version)
         LEFT JOIN outbox.legal_changes AS l
             ON l.pipeline = c.pipeline AND l.from_status = c.from_status AND l.to_status = c.to_status
         LEFT JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status
         -- OFFSET keeps it from becoming a join, which would walk over all of a queue that was analyzed when it was empty.
         LEFT JOIN LATERAL (SELECT j.id, j.stage, j.owner, j.attempt, j.status, j.entered, j.due FROM outbox.jobs AS j
                            WHERE j.workflow_id = c.id OFFSET 0) AS held ON true
         -- A job of the status before tells that nothing has moved on; only without one the workflow is read again.
         CROSS JOIN LATERAL (
             SELECT held.*, held.stage = r.stage AND held.status = c.from_status AS goes_on,
                    CASE WHEN held.entered <= c.version THEN false
                         ELSE (SELECT w.version FROM outbox.workflow_states AS w WHERE w.id = c.id) IS DISTINCT FROM c.version
                    END AS over
         ) AS j
    WHERE c.from_status <> c.to_status;

    -- Where only the data has changed, the waiting job may belong to another partition now, or have another priority.
    IF ids IS NULL OR cardinality(ids) < rows THEN
        UPDATE outbox.jobs AS j SET partition = k.partition, priority = k.priority
        FROM (SELECT n.id, r.partition, r.priority
              FROM new_rows AS n
              CROSS JOIN LATERAL outbox.job_of(n.pipeline, n.current_status, n.metadata) AS r
              WHERE r.partition IS NOT NULL AND (n.id = ANY (ids)) IS NOT TRUE) AS k
        WHERE j.workflow_id = k.id AND j.workflow_id = ANY (ARRAY(SELECT n.id FROM new_rows AS n)) AND j.owner IS NULL
          AND (j.partition, j.priority) IS DISTINCT FROM (k.partition, k.priority);
    END IF;
    IF ids IS NULL THEN
        RETURN NULL;
    END IF;

    -- 2. Refuse what is unknown or illegal. The renames of a deploy look like it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM outbox.definition_require_current(pipelines);
    END IF;
    IF unknown IS NOT NULL OR illegal IS NOT NULL THEN
        IF outbox.workflows_renamed(ids, pipelines, froms, tos, versions, actor) THEN
            RETURN NULL;
        END IF;
        n := array_position(ids, coalesce(unknown, illegal));
        RAISE EXCEPTION '%: pipeline "%", entity "%", from "%" to "%"',
            CASE WHEN unknown IS NULL THEN 'illegal change' ELSE 'unknown status' END, pipelines[n],
            (SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.id = ids[n]), froms[n], tos[n]
            USING ERRCODE = CASE WHEN unknown IS NULL THEN 'OB001' ELSE 'OB003' END,
                  DETAIL = jsonb_build_object(
                      'pipeline', pipelines[n],
                      'entity_id', (SELECT w.entity_id FROM outbox.workflow_states AS w WHERE w.id = ids[n]),
                      'from_status', froms[n], 'to_status', tos[n])::text,
                  HINT = 'outbox.legal_changes lists the changes that the pipeline allows; '
                      || 'Pipeline.allow() and `outbox deploy` add to it.';
    END IF;

    -- A job that ends here though another change has ended it is told with that one, which comes after this.
    IF early IS NOT NULL THEN
        PERFORM set_config('outbox.early', (coalesce(outbox.told('outbox.early')::jsonb, '{}') || early)::text, true);
    ELSIF over IS NOT NULL AND worker IS NOT NULL THEN
        early := outbox.told('outbox.early')::jsonb;
        SELECT array_agg(coalesce(c.stage, e.stage) ORDER BY c.n), array_agg(coalesce(c.attempt, e.attempt) ORDER BY c.n)
        INTO by_stages, attempts
        FROM unnest(ids, froms, by_stages, attempts) WITH ORDINALITY AS c (id, from_status, stage, attempt, n)
        LEFT JOIN LATERAL jsonb_to_record(early -> c.id::text) AS e (status text, stage text, attempt integer)
            ON e.status = c.from_status AND c.id = ANY (over);
    END IF;

    -- 3. The open job ends. A live job and a dead one exclude each other, so a dead one is sought only where no live one
    -- ended: the change is its answer.
    IF ending IS NOT NULL THEN
        DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ending);
        GET DIAGNOSTICS ended = ROW_COUNT;
    END IF;
    IF ended < cardinality(ids) THEN
        DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    END IF;

    -- 4. What was waited for ends: the change answers what was asked of a person.
    IF waited IS NOT NULL THEN
        DELETE FROM outbox.resting AS r WHERE r.workflow_id = ANY (waited);
        -- A question of another status is answered by the change from that one, which is told after this.
        PERFORM outbox.waits_end(array_agg(c.id), array_agg(c.to_status), actor, reason)
        FROM unnest(ids, froms, tos) AS c (id, from_status, to_status)
        WHERE c.id = ANY (waited) AND NOT EXISTS (
            SELECT FROM outbox.approvals AS a
            WHERE a.workflow_id = c.id AND a.ended_at IS NULL AND a.status <> c.from_status);
    END IF;

    -- 5. History.
    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, reason, stage, attempt)
    SELECT c.id, c.from_status, c.to_status, c.version, actor, reason, c.stage, c.attempt
    FROM unnest(ids, froms, tos, versions, by_stages, attempts) AS c (id, from_status, to_status, version, stage, attempt);

    -- 6. The next job; or the same one goes on.
    IF keeping IS NOT NULL THEN
        UPDATE outbox.jobs AS j SET status = c.to_status, due = coalesce(j.due, true)
        FROM unnest(ids, tos) AS c (id, to_status)
        WHERE j.workflow_id = c.id AND c.id = ANY (keeping);
    END IF;
    IF limited IS NULL THEN
        -- Not by job_of, for it is the hot path: all that such a job is made from was read in step 1, and neither the route
        -- nor the workflow is read again.
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        WHERE c.stage IS NOT NULL;
    ELSE
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, partition, priority)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version, j.partition, j.priority
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        CROSS JOIN LATERAL (SELECT w.metadata FROM outbox.workflow_states AS w WHERE w.id = c.id OFFSET 0) AS w
        CROSS JOIN LATERAL outbox.job_of(c.pipeline, c.to_status, w.metadata) AS j
        WHERE c.stage IS NOT NULL;
    END IF;

    -- 7. Deadlines: beside the job of a stage, or a job of their own.
    IF timed IS NOT NULL THEN
        PERFORM outbox.deadlines_set(array_agg(r.workflow_id), array_agg(r.deadline), array_agg(r.on_deadline))
        FROM outbox.routed AS r WHERE r.workflow_id = ANY (timed);
    END IF;
    IF resting IS NOT NULL THEN
        PERFORM outbox.rest_begin(resting);
    END IF;

    -- 8. Counts. A status that as many leave as come to it has a row, too: it tells that they came.
    INSERT INTO outbox.status_counts (pipeline, status, workflows, came)
    SELECT c.pipeline, s.status, sum(s.workflows), count(*) FILTER (WHERE s.workflows > 0)
    FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
    CROSS JOIN LATERAL (VALUES (c.from_status, -1), (c.to_status, 1)) AS s (status, workflows)
    GROUP BY c.pipeline, s.status;

    -- 9. Reactions.
    IF reacting THEN
        PERFORM outbox.react(ids, froms, tos, versions, actor, reason);
    END IF;
    IF notifying THEN
        PERFORM outbox.statuses_notify(ids, pipelines, tos, versions);
    END IF;

    -- 10. Waits that begin, children that end.
    IF outbox.told('outbox.waits') IS NOT NULL THEN
        PERFORM outbox.waits_begin(outbox.waits_take(ids, versions, over), ids);
    END IF;
    IF final IS NOT NULL THEN
        PERFORM outbox.children_end(final);
    END IF;

    -- 11. Wake workers for the new jobs.
    PERFORM outbox.wake(pipelines, stages, by_stages, 'new');
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.workflows_changed() IS 'Internal: what a change of a status does.';

-- A workflow is deleted: what belongs to it goes along, and a parent no longer waits for it. Its history stays until
-- retention.
CREATE OR REPLACE FUNCTION outbox.workflows_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    ids     uuid[];
    at_work uuid[];
BEGIN
    SELECT array_agg(o.id), array_agg(o.id) FILTER (WHERE NOT r.final) INTO ids, at_work
    FROM old_rows AS o LEFT JOIN outbox.routes AS r ON r.pipeline = o.pipeline AND r.status = o.current_status;
    IF at_work IS NOT NULL THEN
        PERFORM outbox.children_end(at_work);
    END IF;
    DELETE FROM outbox.children AS c WHERE c.child_id = ANY (ids);
    DELETE FROM outbox.children AS c WHERE c.parent_id = ANY (ids);
    DELETE FROM outbox.orphans AS o WHERE o.parent_id = ANY (ids);
    DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ids);
    DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    DELETE FROM outbox.resting AS r WHERE r.workflow_id = ANY (ids);
    DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids);
    DELETE FROM outbox.signals AS s WHERE s.workflow_id = ANY (ids);
    PERFORM outbox.approvals_forget(ids);
    DELETE FROM outbox.effects AS e WHERE e.workflow_id = ANY (ids);
    PERFORM outbox.blobs_forget(ids);
    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT o.pipeline, o.current_status, -count(*) FROM old_rows AS o GROUP BY o.pipeline, o.current_status;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION outbox.workflows_deleted() IS 'Internal: what the end of a workflow''s row does.';
