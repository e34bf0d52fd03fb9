-- How waits begin and end, and what they have in common: the change that ends them, and their deadlines. The part of each
-- kind is in a file of its own: approvals.sql, signals.sql, children.sql. These functions run as the owner, within triggers
-- and outbox.decide; only those call them.

-- Finds the workflow that a person names, and locks it.
CREATE OR REPLACE FUNCTION outbox.workflow_locked(pipeline text, entity_id text) RETURNS outbox.workflow_states
LANGUAGE plpgsql
AS $$
DECLARE
    workflow outbox.workflow_states;
BEGIN
    SELECT * INTO workflow FROM outbox.workflow_states AS w
    WHERE w.pipeline = workflow_locked.pipeline AND w.entity_id = workflow_locked.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', entity_id, pipeline
            USING ERRCODE = 'OB011', DETAIL = jsonb_build_object('pipeline', pipeline, 'entity_id', entity_id)::text;
    END IF;
    RETURN workflow;
END
$$;
COMMENT ON FUNCTION outbox.workflow_locked(text, text) IS 'Internal: finds the workflow that a person names, and locks it.';

-- Changes a workflow's status and, unless null, its data. The history tells it by `actor` (null: the actor of this
-- transaction) and `reason`. What else the caller's transaction changes is told as before.
CREATE OR REPLACE FUNCTION outbox.workflow_move(
    workflow uuid, to_status text, reason text, actor text DEFAULT NULL, data jsonb DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    actor_before    text := coalesce(current_setting('outbox.actor', true), '');
    reason_before   text := coalesce(current_setting('outbox.reason', true), '');
    decision_before text := coalesce(current_setting('outbox.decision', true), '');
BEGIN
    PERFORM set_config('outbox.actor', coalesce(actor, actor_before), true),
            set_config('outbox.reason', coalesce(reason, ''), true), set_config('outbox.decision', '', true);
    UPDATE outbox.workflow_states AS w
    SET current_status = workflow_move.to_status, metadata = coalesce(data, w.metadata)
    WHERE w.id = workflow;
    PERFORM set_config('outbox.actor', actor_before, true), set_config('outbox.reason', reason_before, true),
            set_config('outbox.decision', decision_before, true);
END
$$;
COMMENT ON FUNCTION outbox.workflow_move(uuid, text, text, text, jsonb) IS
    'Internal: changes a status in the name of an actor and for a reason, for this change only.';

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

-- Puts off the jobs of stages: until `at`, or for `after` seconds from now.
CREATE OR REPLACE FUNCTION outbox.timers_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE outbox.jobs AS j SET run_at = i.run_at, due = i.run_at <= clock_timestamp()
    FROM (SELECT i.id, coalesce(i.at, clock_timestamp() + make_interval(secs => i.after)) AS run_at
          FROM jsonb_to_recordset(items) AS i (id uuid, at timestamptz, after float8)) AS i
    WHERE i.run_at IS NOT NULL AND i.id = ANY (ids) AND j.workflow_id = i.id AND j.stage IS NOT NULL;
END
$$;
COMMENT ON FUNCTION outbox.timers_begin(jsonb, uuid[]) IS 'Internal: puts off the jobs of stages.';

-- Sets the deadlines that waits of any kind have: `within` seconds from now, the workflow moves to `on_deadline`.
CREATE OR REPLACE FUNCTION outbox.timeouts_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM outbox.deadlines_set(array_agg(i.id), array_agg(i.deadline), array_agg(i.on_deadline))
    FROM (SELECT i.id, clock_timestamp() + make_interval(secs => i.within) AS deadline, i.on_deadline
          FROM jsonb_to_recordset(items) AS i (id uuid, within float8, on_deadline text)) AS i
    WHERE i.deadline IS NOT NULL AND i.id = ANY (ids);
END
$$;
COMMENT ON FUNCTION outbox.timeouts_begin(jsonb, uuid[]) IS 'Internal: sets the deadlines of waits.';

-- Takes what handlers have returned for workflows that have just moved to these versions, out of what the worker has told.
-- Each item begins once, with the change that it belongs to: not with a change that another trigger makes before or after.
-- Workflows that have moved on (`over`) wait for nothing any more. An item of an older worker has no version.
CREATE OR REPLACE FUNCTION outbox.waits_take(ids uuid[], versions bigint[], over uuid[]) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    taken jsonb;
    rest  jsonb;
BEGIN
    SELECT jsonb_agg(i.item) FILTER (WHERE i.mine AND (i.id = ANY (over)) IS NOT TRUE), jsonb_agg(i.item) FILTER (WHERE NOT i.mine)
    INTO taken, rest
    FROM (SELECT i.item, i.id, i.n IS NOT NULL AND coalesce((i.item ->> 'version')::bigint, versions[i.n]) = versions[i.n] AS mine
          FROM (SELECT e.item, (e.item ->> 'id')::uuid AS id, array_position(ids, (e.item ->> 'id')::uuid) AS n
                FROM jsonb_array_elements(outbox.told('outbox.waits')::jsonb) AS e (item)) AS i) AS i;
    PERFORM set_config('outbox.waits', coalesce(rest::text, ''), true);
    RETURN taken;
END
$$;
COMMENT ON FUNCTION outbox.waits_take(uuid[], bigint[], uuid[]) IS
    'Internal: takes the waits of these changes out of what the worker has told.';

-- Refuses waits that lead to what is not a legal change: nothing could end them. The code of the worker has checked it, so a
-- deploy has come since it started.
CREATE OR REPLACE FUNCTION outbox.waits_require_legal(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    stray record;
BEGIN
    SELECT w.pipeline, w.entity_id, w.current_status, t.to_status INTO stray
    FROM (SELECT (e.item ->> 'id')::uuid AS id, e.item FROM jsonb_array_elements(items) AS e (item)) AS i
    CROSS JOIN LATERAL (
        SELECT i.item ->> f.field FROM unnest(ARRAY['to_status', 'on_failure', 'on_deadline']) AS f (field)
        UNION ALL
        SELECT o.value
        FROM jsonb_array_elements(CASE WHEN i.item ? 'questions' THEN i.item -> 'questions' ELSE jsonb_build_array(i.item) END)
                 AS q (asked),
             jsonb_each_text(CASE WHEN q.asked ? 'options' THEN q.asked -> 'options' ELSE '{}' END) AS o (option, value)
    ) AS t (to_status)
    CROSS JOIN LATERAL (SELECT w.pipeline, w.entity_id, w.current_status FROM outbox.workflow_states AS w
                        WHERE w.id = i.id OFFSET 0) AS w
    WHERE i.id = ANY (ids) AND t.to_status IS NOT NULL AND NOT EXISTS (
        SELECT FROM outbox.legal_changes AS l
        WHERE l.pipeline = w.pipeline AND l.from_status = w.current_status AND l.to_status = t.to_status)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'illegal change: pipeline "%", entity "%", from "%" to "%"', stray.pipeline, stray.entity_id,
            stray.current_status, stray.to_status
            USING ERRCODE = 'OB001',
                  DETAIL = jsonb_build_object('pipeline', stray.pipeline, 'entity_id', stray.entity_id,
                                              'from_status', stray.current_status, 'to_status', stray.to_status)::text,
                  HINT = 'A wait must lead to a change that is legal in the pipeline as it is deployed.';
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.waits_require_legal(jsonb, uuid[]) IS 'Internal: refuses waits that lead to what is not a legal change.';

-- Begins what handlers have returned for workflows that have just moved. `items` is an array of objects, each with the `id`
-- of its workflow; `ids` are the workflows of this change. Each kind takes the items that have its fields.
CREATE OR REPLACE FUNCTION outbox.waits_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM outbox.waits_require_legal(items, ids);
    PERFORM outbox.timers_begin(items, ids);
    PERFORM outbox.timeouts_begin(items, ids);
    PERFORM outbox.approvals_begin(items, ids);
    PERFORM outbox.spawns_require_known(items, ids);
    PERFORM outbox.children_spawn(items, ids);
    PERFORM outbox.joins_require_known(items, ids);
    PERFORM outbox.children_begin(items, ids);
    PERFORM outbox.signals_begin(items, ids);
END
$$;
COMMENT ON FUNCTION outbox.waits_begin(jsonb, uuid[]) IS 'Internal: begins the waits that handlers have returned.';

-- Ends the waits of workflows that have moved on: position n of `tos` is where workflow n has gone.
CREATE OR REPLACE FUNCTION outbox.waits_end(ids uuid[], tos text[], actor text, reason text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    parents uuid[];
BEGIN
    WITH ended AS (
        DELETE FROM outbox.waits AS w WHERE w.workflow_id = ANY (ids) RETURNING w.workflow_id, w.children
    )
    SELECT array_agg(e.workflow_id) INTO parents FROM ended AS e WHERE e.children > 0;
    IF parents IS NOT NULL THEN
        PERFORM outbox.children_cancel(array_agg(c.id), array_agg(c.to_status))
        FROM unnest(ids, tos) AS c (id, to_status) WHERE c.id = ANY (parents);
    END IF;
    PERFORM outbox.approvals_end(ids, tos, actor, reason);
END
$$;
COMMENT ON FUNCTION outbox.waits_end(uuid[], text[], text, text) IS 'Internal: ends the waits of workflows that have moved on.';
REVOKE EXECUTE ON FUNCTION outbox.workflow_locked(text, text), outbox.workflow_move(uuid, text, text, text, jsonb),
    outbox.deadlines_set(uuid[], timestamptz[], text[]), outbox.timers_begin(jsonb, uuid[]),
    outbox.timeouts_begin(jsonb, uuid[]), outbox.waits_take(uuid[], bigint[], uuid[]), outbox.waits_begin(jsonb, uuid[]),
    outbox.waits_require_legal(jsonb, uuid[]),
    outbox.waits_end(uuid[], text[], text, text) FROM PUBLIC;
