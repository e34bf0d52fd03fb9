-- The orchestrator again, with what a workflow waits for, and what is limited. A pipeline without any of it pays for a look at some empty arrays.

-- OR REPLACE: it was in 0013 for some days, and there are databases that have it from there.
--
-- Begins what handlers have returned for workflows that have just moved: `items` is an array of objects, each with the
-- `id` of its workflow. Times are seconds from now, by the database's clock, or moments.
CREATE OR REPLACE FUNCTION outbox.waits_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    waiting uuid[];
    parent  uuid;
BEGIN
    -- They are begun once: what a signal that is there already moves on comes here again.
    PERFORM set_config('outbox.waits', '', true);

    -- The job of the next stage, later.
    UPDATE outbox.jobs AS j SET run_at = i.run_at, due = i.run_at <= now()
    FROM (SELECT i.id, coalesce(i.at, now() + make_interval(secs => i.after)) AS run_at
          FROM jsonb_to_recordset(items) AS i (id uuid, at timestamptz, after float8)) AS i
    WHERE i.run_at IS NOT NULL AND i.id = ANY (ids) AND j.workflow_id = i.id AND j.stage IS NOT NULL;

    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline)
    SELECT w.id, w.pipeline, NULL, w.current_status, w.version, i.deadline, false, i.deadline, i.on_deadline
    FROM (SELECT i.id, now() + make_interval(secs => i.within) AS deadline, i.on_deadline
          FROM jsonb_to_recordset(items) AS i (id uuid, within float8, on_deadline text)) AS i
    JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
    WHERE i.deadline IS NOT NULL
    ORDER BY w.id
    ON CONFLICT (workflow_id) DO UPDATE SET deadline = excluded.deadline, on_deadline = excluded.on_deadline;

    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, assignee,
                                  deadline, remind_every, remind_at)
    SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.version, i.question, outbox.shown(w.metadata), i.options,
           i.assignee, now() + make_interval(secs => i.within), i.remind_every, now() + i.remind_every
    FROM (SELECT i.*, make_interval(secs => i.remind) AS remind_every
          FROM jsonb_to_recordset(items) AS i (id uuid, question text, options jsonb, assignee text, within float8,
                                               remind float8)) AS i
    JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
    WHERE i.question IS NOT NULL
    ORDER BY w.id;

    -- Children: what is there already is left alone, and is nobody's child by this.
    WITH wanted AS MATERIALIZED (
        SELECT DISTINCT ON (c.pipeline, c.entity) i.id AS parent_id, c.pipeline, c.entity, c.data::jsonb, c.cancel, c.n
        FROM jsonb_to_recordset(items) AS i (id uuid, spawn jsonb)
        CROSS JOIN LATERAL ROWS FROM (jsonb_to_recordset(i.spawn) AS (pipeline text, entity text, data text, cancel text))
            WITH ORDINALITY AS c (pipeline, entity, data, cancel, n)
        WHERE i.id = ANY (ids)
        ORDER BY c.pipeline, c.entity, i.id
    ), made AS (
        INSERT INTO outbox.workflow_states (pipeline, entity_id, metadata)
        SELECT w.pipeline, w.entity, w.data FROM wanted AS w ORDER BY w.parent_id, w.n
        ON CONFLICT (pipeline, entity_id) DO NOTHING
        RETURNING id, pipeline, entity_id
    )
    INSERT INTO outbox.children (child_id, parent_id, cancel_to)
    SELECT m.id, w.parent_id, w.cancel
    FROM made AS m JOIN wanted AS w ON w.pipeline = m.pipeline AND w.entity = m.entity_id;

    FOR parent IN
        WITH made AS (
            INSERT INTO outbox.waits (workflow_id, children, to_status, failed, on_failure)
            SELECT i.id, (SELECT count(*)::integer FROM outbox.children AS c
                          JOIN outbox.workflow_states AS w ON w.id = c.child_id
                          JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
                          WHERE c.parent_id = i.id AND NOT r.final), i.to_status, i.failed, i.on_failure
            FROM jsonb_to_recordset(items) AS i (id uuid, "join" boolean, to_status text, failed text[], on_failure text)
            WHERE i."join" AND i.id = ANY (ids)
            ORDER BY i.id
            RETURNING workflow_id, children
        )
        SELECT made.workflow_id FROM made WHERE made.children = 0 ORDER BY 1
    LOOP
        PERFORM outbox.children_join(parent);
    END LOOP;

    WITH made AS (
        INSERT INTO outbox.waits (workflow_id, signal, to_status, field)
        SELECT i.id, i.signal, i.to_status, i.field
        FROM jsonb_to_recordset(items) AS i (id uuid, signal text, to_status text, field text)
        WHERE i.signal IS NOT NULL AND i.id = ANY (ids)
        ORDER BY i.id
        RETURNING workflow_id
    )
    SELECT array_agg(made.workflow_id) INTO waiting FROM made;
    IF waiting IS NOT NULL THEN
        PERFORM outbox.signals_take(waiting);
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION outbox.waits_begin(jsonb, uuid[]) FROM PUBLIC;

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
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, run_at, due, deadline, on_deadline,
                                 partition, priority)
        SELECT s.id, s.pipeline, r.stage, s.current_status, s.version,
               CASE WHEN r.stage IS NULL THEN now() + r.deadline ELSE now() END, r.stage IS NOT NULL,
               now() + r.deadline, r.on_deadline,
               CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(s.metadata, r.partition) END,
               CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(s.metadata, r.priority) END
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
    limited   uuid[];     -- whose next stage is limited
    rows      integer;    -- of the statement, those whose status stays as it is included
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
           array_agg(c.id) FILTER (WHERE r.partition IS NOT NULL AND NOT r.running),
           max(cardinality(n.ids)),
           bool_or(r.reactions IS NOT NULL),
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping,
         waited, timed, final, limited, rows, reacting, unknown, illegal
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

    -- Where only the data has changed, the job that waits is another customer's now, or more urgent.
    IF ids IS NULL OR cardinality(ids) < rows THEN
        UPDATE outbox.jobs AS j SET partition = k.partition, priority = k.priority
        FROM (SELECT n.id, outbox.partition_of(n.metadata, r.partition) AS partition,
                     outbox.priority_of(n.metadata, r.priority) AS priority
              FROM new_rows AS n
              JOIN outbox.routes AS r ON r.pipeline = n.pipeline AND r.status = n.current_status AND r.partition IS NOT NULL
              WHERE (n.id = ANY (ids)) IS NOT TRUE) AS k
        WHERE j.workflow_id = k.id AND j.workflow_id = ANY (ARRAY(SELECT n.id FROM new_rows AS n)) AND j.owner IS NULL
          AND (j.partition, j.priority) IS DISTINCT FROM (k.partition, k.priority);
    END IF;
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

    IF limited IS NULL THEN
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        WHERE c.stage IS NOT NULL;
    ELSE
        INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, version, partition, priority)
        SELECT c.id, c.pipeline, c.stage, c.to_status, c.version,
               CASE WHEN r.partition IS NOT NULL THEN outbox.partition_of(w.metadata, r.partition) END,
               CASE WHEN r.partition IS NOT NULL THEN outbox.priority_of(w.metadata, r.priority) END
        FROM unnest(ids, pipelines, stages, tos, versions) AS c (id, pipeline, stage, to_status, version)
        JOIN outbox.routes AS r ON r.pipeline = c.pipeline AND r.status = c.to_status
        CROSS JOIN LATERAL (SELECT w.metadata FROM outbox.workflow_states AS w WHERE w.id = c.id OFFSET 0) AS w
        WHERE c.stage IS NOT NULL;
    END IF;
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
        PERFORM outbox.children_end(at_work);  -- a child that is gone is not waited for
    END IF;
    DELETE FROM outbox.children AS c WHERE c.child_id = ANY (ids);
    DELETE FROM outbox.children AS c WHERE c.parent_id = ANY (ids);
    DELETE FROM outbox.orphans AS o WHERE o.parent_id = ANY (ids);
    DELETE FROM outbox.jobs AS j WHERE j.workflow_id = ANY (ids);
    DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
    DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids);
    DELETE FROM outbox.signals AS s WHERE s.workflow_id = ANY (ids);
    DELETE FROM outbox.approvals AS a WHERE a.workflow_id = ANY (ids);
    INSERT INTO outbox.status_counts (pipeline, status, workflows)
    SELECT o.pipeline, o.current_status, -count(*) FROM old_rows AS o GROUP BY o.pipeline, o.current_status;
    RETURN NULL;
END
$$;

-- What is due later are jobs of stages; and a stage may be paused.
CREATE OR REPLACE VIEW outbox.overview AS
WITH workflows AS (
    SELECT pipeline, status, sum(workflows)::bigint AS n FROM outbox.status_counts GROUP BY pipeline, status
), scheduled AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NULL AND NOT due AND stage IS NOT NULL AND run_at > now() GROUP BY pipeline, stage, status
), running AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.jobs
    WHERE owner IS NOT NULL GROUP BY pipeline, stage, status
), dead AS (
    SELECT pipeline, stage, status, count(*) AS n FROM outbox.dead_jobs GROUP BY pipeline, stage, status
)
SELECT
    r.pipeline,
    r.status,
    r.stage,
    coalesce(w.n, 0) AS workflows,
    CASE WHEN r.stage IS NULL THEN 0
         ELSE greatest(coalesce(w.n, 0) - coalesce(s.n, 0) - coalesce(c.n, 0) - coalesce(d.n, 0), 0)
    END AS ready,
    coalesce(s.n, 0) AS scheduled,
    coalesce(c.n, 0) AS running,
    coalesce(d.n, 0) AS dead,
    -- The job that is first in line; null where nothing waits. An in-progress status shares its stage's line.
    CASE WHEN r.running THEN NULL ELSE now() - (
        SELECT min(o.run_at) FROM (
            SELECT j.run_at FROM outbox.jobs AS j
            WHERE j.pipeline = r.pipeline AND j.stage = r.stage AND NOT j.careful AND j.owner IS NULL AND j.due
            ORDER BY j.id LIMIT 1
        ) AS o
    ) END AS oldest_waiting,
    EXISTS (SELECT FROM outbox.pauses AS p WHERE p.pipeline = r.pipeline AND p.stage = r.stage) AS paused
FROM outbox.routes AS r
LEFT JOIN workflows AS w ON w.pipeline = r.pipeline AND w.status = r.status
LEFT JOIN scheduled AS s ON s.pipeline = r.pipeline AND s.status = r.status AND s.stage = r.stage
LEFT JOIN running AS c ON c.pipeline = r.pipeline AND c.status = r.status AND c.stage = r.stage
LEFT JOIN dead AS d ON d.pipeline = r.pipeline AND d.status = r.status AND d.stage = r.stage;
