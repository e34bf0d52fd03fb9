-- Erasing: what an entity's workflow has of texts goes, and that it was there stays. These functions are the owner's alone, and run
-- with the rights of the role that calls them.

-- What stands beside the workflows, in the tables of others. Each table that has texts of a workflow has its statement here, or in
-- one of the functions below: a test looks for a mark in all of them. Kept are ids, times, statuses, and the names that code gives
-- (stages, options, signals, topics) and people have (actors, logins, approvers).
CREATE OR REPLACE FUNCTION outbox.erase_beside(ids uuid[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM outbox.checkpoints AS c WHERE c.workflow_id = ANY (ids);
    DELETE FROM outbox.effects AS e WHERE e.workflow_id = ANY (ids);
    UPDATE outbox.signals AS s SET payload = NULL, signal_id = NULL WHERE s.workflow_id = ANY (ids);
    UPDATE outbox.actions AS a SET reason = NULL WHERE a.workflow_id = ANY (ids) AND a.reason IS NOT NULL;
    UPDATE outbox.approval_votes AS v SET reason = NULL, shown = ''
    FROM outbox.approvals AS a WHERE a.workflow_id = ANY (ids) AND v.approval_id = a.id;
    UPDATE outbox.approvals AS a
    SET question = 'erased', name = NULL, data = NULL, shown = '', edited = NULL, reason = NULL
    WHERE a.workflow_id = ANY (ids);
    UPDATE outbox.jobs AS j SET error = NULL, progress = NULL WHERE j.workflow_id = ANY (ids);
    DELETE FROM outbox.dead_jobs AS d WHERE d.workflow_id = ANY (ids);
END
$$;
COMMENT ON FUNCTION outbox.erase_beside(uuid[]) IS 'Internal: erases what stands beside workflows.';

-- Messages that no relay has read yet are never sent. Of the others only the copies here go. Returns both. Until the end of the
-- transaction no relay cuts a window or parks a message.
CREATE OR REPLACE FUNCTION outbox.erase_messages(ids uuid[]) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    read    uuid[];
    parked  uuid[];
    found   jsonb;
BEGIN
    PERFORM FROM outbox.relays AS r ORDER BY r.name FOR SHARE;
    read := ARRAY(
        SELECT m.message_id FROM outbox.messages AS m
        WHERE m.workflow_id = ANY (ids) AND EXISTS (
            SELECT FROM outbox.relays AS r WHERE pg_visible_in_snapshot(m.xid, coalesce(r.window_end, r.window_start))));
    WITH gone AS (
        DELETE FROM outbox.parked_messages AS p WHERE p.workflow_id = ANY (ids) RETURNING p.message_id
    )
    SELECT array_agg(gone.message_id) INTO parked FROM gone;
    WITH gone AS (
        DELETE FROM outbox.messages AS m WHERE m.workflow_id = ANY (ids) RETURNING m.message_id, m.topic
    ), deliveries AS (
        DELETE FROM outbox.parked_deliveries AS d
        WHERE d.message_id = ANY (ARRAY(SELECT gone.message_id::text FROM gone) || parked::text[])
        RETURNING 1
    )
    SELECT jsonb_build_object(
        'unsent', (SELECT count(*) FROM gone WHERE gone.message_id <> ALL (read)),
        'parked', coalesce(cardinality(parked), 0), 'parked_deliveries', (SELECT count(*) FROM deliveries),
        'published', coalesce((SELECT jsonb_object_agg(t.topic, t.messages)
                               FROM (SELECT gone.topic, count(*) AS messages FROM gone
                                     WHERE gone.message_id = ANY (read) AND gone.message_id <> ALL (coalesce(parked, '{}'))
                                     GROUP BY gone.topic) AS t), '{}'))
    INTO found;
    RETURN found;
END
$$;
COMMENT ON FUNCTION outbox.erase_messages(uuid[]) IS
    'Internal: deletes the messages of workflows, and returns how many were there, sent and not sent.';

-- Contents that another workflow uses, too, stay; returns how many. Those that nothing uses go at once.
CREATE OR REPLACE FUNCTION outbox.erase_blobs(ids uuid[]) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    hashes bytea[] := ARRAY(SELECT u.sha256 FROM outbox.blob_uses AS u WHERE u.workflow_id = ANY (ids));
    parts  bytea[];
BEGIN
    PERFORM FROM outbox.blobs AS b WHERE b.sha256 = ANY (hashes) ORDER BY b.sha256 FOR UPDATE;
    PERFORM outbox.blobs_forget(ids);
    parts := outbox.blobs_remove(hashes);
    PERFORM FROM outbox.blob_parts AS p WHERE p.sha256 = ANY (parts) ORDER BY p.sha256 FOR UPDATE;
    PERFORM outbox.parts_remove(parts);
    RETURN (SELECT count(*) FROM outbox.blobs AS b WHERE b.sha256 = ANY (hashes));
END
$$;
COMMENT ON FUNCTION outbox.erase_blobs(uuid[]) IS
    'Internal: deletes the large contents of workflows, and returns how many others use as well.';

-- What lists and limits have made of the texts: partitions of the stages, and kinds of errors that no dead job has any more.
CREATE OR REPLACE FUNCTION outbox.erase_derived(workflow outbox.workflow_states, pipelines text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    partitions text[] := ARRAY(
        SELECT DISTINCT outbox.partition_of(workflow.metadata, r.partition) FROM outbox.routes AS r
        WHERE r.pipeline = workflow.pipeline AND cardinality(r.partition) > 0);
BEGIN
    UPDATE outbox.limits AS l SET served = '' WHERE l.pipeline = workflow.pipeline AND l.served = ANY (partitions);
    DELETE FROM outbox.partition_rates AS r
    WHERE r.pipeline = workflow.pipeline AND r.partition = ANY (partitions) AND r.next_at <= clock_timestamp();
    -- Maintenance folds these rows, too: the lock keeps the two apart.
    PERFORM pg_advisory_xact_lock(hashtext('outbox.deaths_fold'));
    WITH over AS MATERIALIZED (
        SELECT k.pipeline, k.stage, k.status, k.kind
        FROM (SELECT c.pipeline, c.stage, c.status, c.kind, c.jobs FROM outbox.dead_counts AS c
              UNION ALL
              SELECT e.pipeline, e.stage, e.status, e.kind, e.jobs FROM outbox.error_kinds AS e) AS k
        WHERE k.pipeline = ANY (pipelines)
        GROUP BY k.pipeline, k.stage, k.status, k.kind
        HAVING sum(k.jobs) = 0
    ), counts AS (
        DELETE FROM outbox.dead_counts AS c USING over AS o
        WHERE (c.pipeline, c.stage, c.status, c.kind) = (o.pipeline, o.stage, o.status, o.kind)
    )
    DELETE FROM outbox.error_kinds AS e USING over AS o
    WHERE (e.pipeline, e.stage, e.status, e.kind) = (o.pipeline, o.stage, o.status, o.kind);
END
$$;
COMMENT ON FUNCTION outbox.erase_derived(outbox.workflow_states, text[]) IS
    'Internal: erases what limits and lists have made of the texts of a workflow.';

-- The reactions to a workflow's changes have copies of its data. They go whole; those that have not run never do. Returns both counts.
CREATE OR REPLACE FUNCTION outbox.erase_reactions(ids uuid[]) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    found jsonb;
BEGIN
    PERFORM set_config('outbox.retention', 'on', true);
    DELETE FROM outbox.state_changes AS c WHERE c.workflow_id = ANY (ids);
    DELETE FROM outbox.actions AS a WHERE a.workflow_id = ANY (ids);
    WITH gone AS (DELETE FROM outbox.workflow_states AS w WHERE w.id = ANY (ids) RETURNING w.current_status)
    SELECT jsonb_build_object('reactions', count(*), 'reactions_not_run', count(*) FILTER (WHERE gone.current_status <> 'DONE'))
    INTO found FROM gone;
    PERFORM set_config('outbox.retention', '', true);
    RETURN found;
END
$$;
COMMENT ON FUNCTION outbox.erase_reactions(uuid[]) IS 'Internal: deletes reactions, with their history, and returns how many.';

-- The row itself, and its history: reasons go, and a row more says who has erased the rest.
CREATE OR REPLACE FUNCTION outbox.erase_workflow(workflow uuid, actor text, reason text) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now_is outbox.workflow_states;
BEGIN
    PERFORM set_config('outbox.erasing', 'on', true);
    UPDATE outbox.workflow_states AS w SET metadata = jsonb_build_object('$erased', clock_timestamp())
    WHERE w.id = workflow RETURNING * INTO now_is;
    -- A row that leads nowhere tells of an erasing before.
    UPDATE outbox.state_changes AS c SET reason = NULL
    WHERE c.workflow_id = workflow AND c.reason IS NOT NULL AND c.from_status IS DISTINCT FROM c.to_status;
    INSERT INTO outbox.state_changes (workflow_id, from_status, to_status, version, actor, reason)
    VALUES (workflow, now_is.current_status, now_is.current_status, now_is.version, actor, concat_ws(': ', 'erased', reason));
    PERFORM set_config('outbox.erasing', '', true);
    RETURN now_is.version;
END
$$;
COMMENT ON FUNCTION outbox.erase_workflow(uuid, text, text) IS
    'Internal: erases the data of a workflow and the reasons in its history.';

-- A workflow that has not ended is cancelled first: so the commit of an attempt that is at work is fenced, as by any change. The
-- workflow is locked from the beginning to the end. What has committed before is erased, and what comes after finds no job.
CREATE OR REPLACE FUNCTION outbox.erase(
    pipeline text, entity_id text, erased_by text DEFAULT NULL, reason text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow  outbox.workflow_states := outbox.workflow_locked(erase.pipeline, erase.entity_id);
    actor     text := coalesce(outbox.actor_named(erase.erased_by), outbox.actor());
    status    text := workflow.current_status;
    reactions uuid[];
    found     jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'outbox.erase must see what others have just written: this transaction is %',
            upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state', HINT = 'Call it in a transaction that is READ COMMITTED.';
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.routes AS r
                   WHERE r.pipeline = workflow.pipeline AND r.status = workflow.current_status AND r.final) THEN
        status := outbox.cancel(workflow.pipeline, workflow.entity_id, erase.erased_by, 'erased');
    END IF;
    reactions := ARRAY(
        SELECT w.id
        FROM outbox.pipelines AS p
        JOIN outbox.workflow_states AS w
            ON w.pipeline = p.pipeline
            AND w.entity_id >= left(workflow.entity_id, 450) || '@' AND w.entity_id < left(workflow.entity_id, 450) || 'A'
        WHERE p.reaction_of = workflow.pipeline AND right(w.entity_id, 37) = '@' || workflow.id
        ORDER BY w.id
        FOR UPDATE OF w);
    found := jsonb_build_object('pipeline', workflow.pipeline, 'entity_id', workflow.entity_id, 'status', status)
        || outbox.erase_messages(workflow.id || reactions);
    PERFORM outbox.erase_beside(workflow.id || reactions);
    found := found || jsonb_build_object('blobs_of_others', outbox.erase_blobs(workflow.id || reactions))
        || outbox.erase_reactions(reactions);
    PERFORM outbox.erase_derived(workflow, ARRAY(SELECT p.pipeline FROM outbox.pipelines AS p
                                                 WHERE workflow.pipeline IN (p.pipeline, p.reaction_of)));
    RETURN found || jsonb_build_object(
        'version', outbox.erase_workflow(workflow.id, actor, erase.reason),
        'relatives', (SELECT coalesce(jsonb_agg(jsonb_build_object('pipeline', w.pipeline, 'entity_id', w.entity_id)
                                                ORDER BY w.pipeline, w.entity_id), '[]')
                      FROM outbox.children AS c
                      JOIN outbox.workflow_states AS w
                          ON w.id = CASE c.child_id WHEN workflow.id THEN c.parent_id ELSE c.child_id END
                      WHERE workflow.id IN (c.child_id, c.parent_id)));
END
$$;
COMMENT ON FUNCTION outbox.erase(text, text, text, text) IS
    'Erases the data of a workflow, and every text that Outbox has of it, for the owner of the schema. It leaves a row of history. '
    'One that has not ended is cancelled first. Returns what went, and what was published before and can''t be reached.';
REVOKE EXECUTE ON FUNCTION outbox.erase_beside(uuid[]), outbox.erase_messages(uuid[]), outbox.erase_blobs(uuid[]),
    outbox.erase_derived(outbox.workflow_states, text[]), outbox.erase_reactions(uuid[]), outbox.erase_workflow(uuid, text, text),
    outbox.erase(text, text, text, text) FROM PUBLIC;
