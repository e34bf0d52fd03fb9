-- How waits begin and end. These run as the owner, within triggers and outbox.decide; nobody else calls them.

-- Changes a workflow's status and, unless null, its data. The history tells it by `actor` (null: whoever acts in this
-- transaction) and `reason`; `decision` is the answer that a person gave. What else the caller's transaction changes is
-- told as before.
CREATE OR REPLACE FUNCTION outbox.workflow_move(
    workflow uuid, to_status text, reason text, actor text DEFAULT NULL, decision text DEFAULT NULL, data jsonb DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    actor_before    text := coalesce(current_setting('outbox.actor', true), '');
    reason_before   text := coalesce(current_setting('outbox.reason', true), '');
    decision_before text := coalesce(current_setting('outbox.decision', true), '');
BEGIN
    PERFORM set_config('outbox.actor', coalesce(actor, actor_before), true),
            set_config('outbox.reason', coalesce(reason, ''), true),
            set_config('outbox.decision', coalesce(decision, ''), true);
    UPDATE outbox.workflow_states AS w
    SET current_status = workflow_move.to_status, metadata = coalesce(data, w.metadata)
    WHERE w.id = workflow;
    PERFORM set_config('outbox.actor', actor_before, true), set_config('outbox.reason', reason_before, true),
            set_config('outbox.decision', decision_before, true);
END
$$;
COMMENT ON FUNCTION outbox.workflow_move(uuid, text, text, text, text, jsonb) IS
    'Internal: changes a status in somebody''s name and for a reason, for this change only.';

-- Gives workflows their deadline: position n of each array is one workflow. A workflow whose stage has a job gets it beside
-- that job; one without gets a job that is nothing but the deadline.
CREATE OR REPLACE FUNCTION outbox.deadlines_set(ids uuid[], deadlines timestamptz[], tos text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO outbox.jobs (workflow_id, pipeline, stage, status, entered, run_at, due, deadline, on_deadline)
    SELECT d.id, w.pipeline, NULL, w.current_status, w.version, d.deadline, false, d.deadline, d.on_deadline
    FROM unnest(ids, deadlines, tos) AS d (id, deadline, on_deadline)
    CROSS JOIN LATERAL (SELECT w.pipeline, w.current_status, w.version FROM outbox.workflow_states AS w
                        WHERE w.id = d.id OFFSET 0) AS w
    ORDER BY d.id
    ON CONFLICT (workflow_id) DO UPDATE SET deadline = excluded.deadline, on_deadline = excluded.on_deadline;
END
$$;
COMMENT ON FUNCTION outbox.deadlines_set(uuid[], timestamptz[], text[]) IS 'Internal: gives workflows their deadlines.';

-- Ends what workflows have waited for that have moved on: position n of `tos` is where workflow n has gone. A change of the
-- status answers the question, whoever made it and however.
CREATE OR REPLACE FUNCTION outbox.waits_end(ids uuid[], tos text[], actor text, reason text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    said text := nullif(current_setting('outbox.decision', true), '');
BEGIN
    DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids);
    UPDATE outbox.approvals AS a
    SET ended = CASE WHEN said = '(deadline)' THEN 'deadline' WHEN a.options ? d.decision THEN 'decided' ELSE 'withdrawn' END,
        decision = CASE WHEN a.options ? d.decision THEN d.decision END,
        to_status = d.to_status, decided_by = actor, reason = waits_end.reason, ended_at = now()
    FROM (
        SELECT o.workflow_id, c.to_status, coalesce(said, (
            SELECT min(e.key) FROM jsonb_each_text(o.options) AS e (key, value) WHERE e.value = c.to_status)) AS decision
        FROM unnest(ids, tos) AS c (id, to_status)
        JOIN outbox.approvals AS o ON o.workflow_id = c.id AND o.ended_at IS NULL
    ) AS d
    WHERE a.workflow_id = d.workflow_id AND a.ended_at IS NULL;
END
$$;
COMMENT ON FUNCTION outbox.waits_end(uuid[], text[], text, text) IS 'Internal: ends the waits of workflows that have moved on.';

-- Begins what handlers have returned for workflows that have just moved. `items` is an array of objects, each with the `id`
-- of its workflow; `ids` are the workflows of this change. Times are seconds from now by the database's clock, or times.
CREATE OR REPLACE FUNCTION outbox.waits_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    waiting uuid[];
    parent  uuid;
BEGIN
    -- They begin once: a workflow that a signal moves on at once comes here again.
    PERFORM set_config('outbox.waits', '', true);

    -- A delay: the job of the next stage, later.
    UPDATE outbox.jobs AS j SET run_at = i.run_at, due = i.run_at <= now()
    FROM (SELECT i.id, coalesce(i.at, now() + make_interval(secs => i.after)) AS run_at
          FROM jsonb_to_recordset(items) AS i (id uuid, at timestamptz, after float8)) AS i
    WHERE i.run_at IS NOT NULL AND i.id = ANY (ids) AND j.workflow_id = i.id AND j.stage IS NOT NULL;

    -- The timeout of a wait.
    PERFORM outbox.deadlines_set(array_agg(i.id), array_agg(i.deadline), array_agg(i.on_deadline))
    FROM (SELECT i.id, now() + make_interval(secs => i.within) AS deadline, i.on_deadline
          FROM jsonb_to_recordset(items) AS i (id uuid, within float8, on_deadline text)) AS i
    WHERE i.deadline IS NOT NULL AND i.id = ANY (ids);

    -- A question to a person.
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

    -- Children. A workflow that exists already is left alone, and does not become a child by this.
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

    -- A join: it is over at once where all children have ended.
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

    -- A signal: it may be there already.
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
COMMENT ON FUNCTION outbox.waits_begin(jsonb, uuid[]) IS 'Internal: begins the waits that handlers have returned.';
REVOKE EXECUTE ON FUNCTION outbox.workflow_move(uuid, text, text, text, text, jsonb),
    outbox.deadlines_set(uuid[], timestamptz[], text[]), outbox.waits_end(uuid[], text[], text, text),
    outbox.waits_begin(jsonb, uuid[]) FROM PUBLIC;
