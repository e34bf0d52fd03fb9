-- What runs after a change, without being a step of the workflow. A reaction is a pipeline of its own, PIPELINE/REACTION, and
-- each change that it reacts to is a workflow in it, begun in the transaction of the change: it has its attempts, its dead
-- jobs and its history, and nothing that becomes of it touches the workflow that has changed.

ALTER TABLE outbox.pipelines ADD COLUMN reaction_of text COLLATE "C";
ALTER TABLE outbox.routes ADD COLUMN reactions text[];

-- Begins the reactions to changes: position n of each array is one change.
CREATE FUNCTION outbox.react(ids uuid[], froms text[], tos text[], versions bigint[], actor text, reason text) RETURNS void
LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
    SELECT w.pipeline || '/' || n.name,
           CASE WHEN char_length(w.entity_id) <= 480 THEN w.entity_id ELSE w.id::text END || '@' || c.version,
           jsonb_build_object('pipeline', w.pipeline, 'entity_id', w.entity_id, 'workflow_id', w.id, 'from_status', c.from_status,
                              'status', c.to_status, 'version', c.version, 'actor', actor, 'reason', reason, 'at', now(),
                              'data', w.metadata)
    FROM unnest(ids, froms, tos, versions) AS c (id, from_status, to_status, version)
    JOIN outbox.workflow_states AS w ON w.id = c.id
    JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = c.to_status
    CROSS JOIN LATERAL unnest(r.reactions) AS n (name)
    ORDER BY c.id, n.name
    ON CONFLICT (pipeline, entity_id) DO NOTHING;
END;

-- Deletes reactions that are done for more than so many days, with their history. Returns how many.
CREATE FUNCTION outbox.reactions_forget(days float8, most integer) RETURNS integer
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
REVOKE EXECUTE ON FUNCTION outbox.react(uuid[], text[], text[], bigint[], text, text),
    outbox.reactions_forget(float8, integer) FROM PUBLIC;

-- The triggers again, with reactions.

CREATE OR REPLACE FUNCTION outbox.workflows_started() RETURNS trigger
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
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline)
        SELECT s.id, s.pipeline, r.stage, s.current_status, s.version,
               CASE WHEN r.stage IS NULL THEN now() + r.deadline ELSE now() END, r.stage IS NOT NULL,
               now() + r.deadline, r.on_deadline
        FROM new_rows AS s
        JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
        WHERE r.stage IS NOT NULL OR r.on_deadline IS NOT NULL
        RETURNING pipeline, stage
    )
    SELECT array_agg(made.pipeline), array_agg(made.stage) INTO pipelines, stages FROM made;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT s.pipeline, s.current_status, count(*) FROM new_rows AS s GROUP BY s.pipeline, s.current_status;

    IF EXISTS (SELECT FROM new_rows AS s JOIN outbox.routes AS r ON r.pipeline = s.pipeline AND r.status = s.current_status
               WHERE r.reactions IS NOT NULL) THEN
        PERFORM outbox.react(array_agg(s.id), array_agg(NULL::text), array_agg(s.current_status), array_agg(s.version), actor, reason)
        FROM new_rows AS s;
    END IF;
    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION outbox.workflows_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    actor     text := outbox.actor();
    reason    text := nullif(current_setting('outbox.reason', true), '');
    worker    integer := nullif(current_setting('outbox.worker', true), '')::integer;
    waits     jsonb := nullif(current_setting('outbox.waits', true), '')::jsonb;  -- what handlers wait for from now on
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
    waited    uuid[];     -- who had no stage at work: they may have waited for somebody
    timed     uuid[];     -- whose new status has a deadline
    final     uuid[];     -- who have ended
    reacting  boolean;    -- whether anything reacts to these changes
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
           array_agg(c.id) FILTER (WHERE j.id IS NOT NULL AND (r.running AND r.stage = j.stage) IS NOT TRUE),
           array_agg(c.id) FILTER (WHERE r.running AND r.stage = j.stage),
           array_agg(c.id) FILTER (WHERE j.stage IS NULL),
           array_agg(c.id) FILTER (WHERE r.on_deadline IS NOT NULL),
           array_agg(c.id) FILTER (WHERE r.final),
           bool_or(r.reactions IS NOT NULL),
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping,
         waited, timed, final, reacting, unknown, illegal
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
         LEFT JOIN LATERAL (SELECT j.id, j.stage, j.owner, j.attempt FROM outbox.jobs AS j
                            WHERE j.workflow_id = c.id OFFSET 0) AS j ON true
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
    IF waited IS NOT NULL THEN
        PERFORM outbox.waits_end(array_agg(c.id), array_agg(c.to_status), actor, reason)
        FROM unnest(ids, tos) AS c (id, to_status) WHERE c.id = ANY (waited);
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
    IF timed IS NOT NULL THEN
        PERFORM outbox.deadlines_set(timed);
    END IF;

    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT c.pipeline, s.status, sum(s.workflows)
    FROM unnest(pipelines, froms, tos) AS c (pipeline, from_status, to_status)
    CROSS JOIN LATERAL (VALUES (c.from_status, -1), (c.to_status, 1)) AS s (status, workflows)
    GROUP BY c.pipeline, s.status HAVING sum(s.workflows) <> 0;

    IF reacting THEN
        PERFORM outbox.react(ids, froms, tos, versions, actor, reason);
    END IF;
    IF waits IS NOT NULL THEN
        PERFORM outbox.waits_begin(waits, ids);
    END IF;
    IF final IS NOT NULL THEN
        PERFORM outbox.children_end(final);
    END IF;
    PERFORM outbox.wake(pipelines, stages);
    RETURN NULL;
END
$$;
