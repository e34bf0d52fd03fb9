-- Workflows that another one has spawned: fan-out, and the join in which their parent waits for them.

-- `cancel_to`: where the child moves when its parent ends before it; null: it goes on alone.
CREATE TABLE outbox.children (
    child_id  uuid NOT NULL CONSTRAINT children_pkey PRIMARY KEY,
    parent_id uuid NOT NULL,
    cancel_to text COLLATE "C"
);
CREATE INDEX children_by_parent ON outbox.children (parent_id);

-- Parents that have ended while children of theirs are at work: any worker cancels these, and forgets the row. Not the
-- parent's own transaction: children lock upwards, and whoever locks downwards meets them.
CREATE TABLE outbox.orphans (
    parent_id uuid NOT NULL CONSTRAINT orphans_pkey PRIMARY KEY
);

-- A wait is for a signal, or for children: how many are still at work. With one that ended in a status of `failed` the
-- workflow moves to `on_failure`.
ALTER TABLE outbox.waits ALTER COLUMN signal DROP NOT NULL,
    ADD COLUMN children integer,
    ADD COLUMN failed text[],
    ADD COLUMN on_failure text COLLATE "C",
    ADD CONSTRAINT waits_are_for_one_thing CHECK (num_nonnulls(signal, children) = 1);

-- Moves a parent all of whose children have ended. Its row is locked by whoever calls.
CREATE FUNCTION outbox.children_join(parent uuid) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    before text := coalesce(current_setting('outbox.reason', true), '');
BEGIN
    PERFORM set_config('outbox.reason', 'its children have ended', true);
    UPDATE outbox.workflow_states AS p
    SET current_status = CASE WHEN wait.on_failure IS NOT NULL AND EXISTS (
            SELECT FROM outbox.children AS c JOIN outbox.workflow_states AS w ON w.id = c.child_id
            WHERE c.parent_id = parent AND w.current_status = ANY (wait.failed)) THEN wait.on_failure ELSE wait.to_status END
    FROM outbox.waits AS wait
    WHERE p.id = parent AND wait.workflow_id = parent AND wait.children <= 0;
    PERFORM set_config('outbox.reason', before, true);
END
$$;

-- Counts children down that have ended. The parent's row is locked before its wait is looked at, so the last two of a
-- hundred that end at once see each other, and the beginning of the wait sees them or is seen.
CREATE FUNCTION outbox.children_end(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    family  record;
    at_work integer;
BEGIN
    FOR family IN
        SELECT c.parent_id, count(*)::integer AS ended FROM outbox.children AS c
        WHERE c.child_id = ANY (ids) GROUP BY c.parent_id ORDER BY c.parent_id
    LOOP
        PERFORM FROM outbox.workflow_states AS w WHERE w.id = family.parent_id FOR NO KEY UPDATE;
        UPDATE outbox.waits AS w SET children = w.children - family.ended
        WHERE w.workflow_id = family.parent_id AND w.children IS NOT NULL
        RETURNING w.children INTO at_work;
        IF NOT FOUND THEN
            -- A wait that begins at a higher isolation level would not see this: its commit must fail, and be tried again.
            UPDATE outbox.workflow_states AS w SET updated_at = w.updated_at WHERE w.id = family.parent_id;
        ELSIF at_work <= 0 THEN
            PERFORM outbox.children_join(family.parent_id);
        END IF;
    END LOOP;
    INSERT INTO outbox.orphans (parent_id)
    SELECT DISTINCT c.parent_id FROM outbox.children AS c
    WHERE c.parent_id = ANY (ids) AND c.cancel_to IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;

-- With children: what handlers have returned begins, what has ended is counted, what is deleted is forgotten.

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
           (array_agg(c.id) FILTER (WHERE r.status IS NULL))[1],
           (array_agg(c.id) FILTER (WHERE l.pipeline IS NULL OR c.id <> c.old_id))[1]
    INTO ids, pipelines, froms, tos, versions, stages, by_stages, attempts, ending, keeping,
         waited, timed, final, unknown, illegal
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

REVOKE EXECUTE ON FUNCTION outbox.children_join(uuid), outbox.children_end(uuid[]) FROM PUBLIC;
