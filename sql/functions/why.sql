-- Why a workflow does not move: one sentence, and one remedy. Each part below, and in why_jobs.sql, looks for causes of one
-- kind, and returns no row if there is none; outbox.why asks one after the other and returns the first answer. Whatever is
-- counted is counted up to a bound.

CREATE OR REPLACE FUNCTION outbox.why_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE
RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"');
COMMENT ON FUNCTION outbox.why_time(timestamptz) IS 'Internal: a time as sentences tell it.';

-- A word of a command, quoted where a shell needs it. One that can't be printed has the quotes in which a shell reads escapes.
CREATE OR REPLACE FUNCTION outbox.why_word(word text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN word ~ '^[A-Za-z0-9_./:@%+=-]+$' THEN word
            WHEN word ~ '^[[:print:]]*$' THEN '''' || replace(word, '''', '''"''"''') || ''''
            ELSE '$''' || replace(replace(word, '\', '\\'), '''', '\''') || '''' END;
COMMENT ON FUNCTION outbox.why_word(text) IS 'Internal: a word of a command, quoted where a shell needs it.';

-- A command for a workflow. `arguments` are words, and options belong to `command`: a word that begins with - comes after all
-- options.
CREATE OR REPLACE FUNCTION outbox.why_command(command text, entity_id text, arguments text, pipeline text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN entity_id ~ '^-' OR arguments ~ '^[$'']*-'
            THEN concat_ws(' ', 'outbox', command, '--pipeline', outbox.why_word(pipeline), '--', outbox.why_word(entity_id), arguments)
            ELSE concat_ws(' ', 'outbox', command, outbox.why_word(entity_id), arguments, '--pipeline', outbox.why_word(pipeline)) END;
COMMENT ON FUNCTION outbox.why_command(text, text, text, text) IS 'Internal: a command for a workflow.';

-- Somebody's open transaction holds the row: of the workflow or of its job, or locks a whole table against changes. It is seen
-- by the row's xmax, which is the transaction that has locked or changed it. Sessions of the engine hold rows for moments.
CREATE OR REPLACE FUNCTION outbox.why_held(workflow uuid) RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
        SELECT 'held', format('%s is held by session %s (%s%s).', h.what, h.pid, coalesce(nullif(a.application_name, ''), 'no name'),
                              coalesce(', ' || a.state, '') || coalesce(', open since ' || outbox.why_time(a.xact_start), '')),
               format('commit that transaction, or end it: SELECT pg_terminate_backend(%s)', h.pid),
               jsonb_build_object('pid', h.pid, 'application', a.application_name, 'since', a.xact_start)
        FROM (
            SELECT r.what, l.pid, 1 AS n FROM (
                SELECT 'Its row' AS what, w.xmax AS holder FROM outbox.workflow_states AS w WHERE w.id = workflow
                UNION ALL
                SELECT 'Its job', j.xmax FROM outbox.jobs AS j WHERE j.workflow_id = workflow
            ) AS r
            JOIN pg_locks AS l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = r.holder AND l.mode = 'ExclusiveLock'
            WHERE l.pid IS NOT NULL
            UNION ALL
            SELECT 'The table outbox.' || c.relname, l.pid, 2
            FROM pg_locks AS l
            JOIN pg_class AS c ON c.oid = l.relation AND c.relnamespace = 'outbox'::regnamespace
            WHERE l.locktype = 'relation' AND l.granted AND c.relname IN ('workflow_states', 'jobs', 'state_changes')
              AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
              AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        ) AS h
        LEFT JOIN pg_stat_activity AS a ON a.pid = h.pid
        WHERE h.pid <> pg_backend_pid() AND a.application_name NOT LIKE 'outbox%'
        ORDER BY h.n, a.xact_start LIMIT 1;
    IF NOT FOUND THEN
        RETURN QUERY
            SELECT 'held', format('Its row is held by the prepared transaction "%s", since %s.', p.gid, outbox.why_time(p.prepared)),
                   format('COMMIT PREPARED %1$L, or ROLLBACK PREPARED %1$L', p.gid), jsonb_build_object('gid', p.gid, 'since', p.prepared)
            FROM outbox.workflow_states AS w JOIN pg_prepared_xacts AS p ON p.transaction = w.xmax WHERE w.id = workflow;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.why_held(uuid) IS 'Internal: which session holds the row of a workflow.';

-- What it waits for besides a worker: a person, a signal, its children, a time at which it moves by itself.
CREATE OR REPLACE FUNCTION outbox.why_waits(workflow outbox.workflow_states)
RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    asked    record;
    awaited  outbox.waits;
    job      outbox.jobs;
    until    text := '.';
    workers  boolean := EXISTS (SELECT FROM outbox.workers AS k WHERE k.beat_at + k.lease >= now());
BEGIN
    SELECT j.* INTO job FROM outbox.jobs AS j WHERE j.workflow_id = workflow.id;
    IF job.deadline IS NOT NULL THEN
        until := format(', until %s, when it moves to %s.', outbox.why_time(job.deadline), job.on_deadline);
        IF job.deadline < now() AND NOT EXISTS (
            SELECT FROM outbox.legal_changes AS l WHERE l.pipeline = workflow.pipeline AND l.from_status = job.status
            AND l.to_status = job.on_deadline) THEN
            RETURN QUERY SELECT 'overdue', format('Its deadline passed at %s, but from %s to %s is not a legal change.',
                outbox.why_time(job.deadline), job.status, job.on_deadline), 'deploy a pipeline that allows it',
                jsonb_build_object('deadline', job.deadline, 'to_status', job.on_deadline);
            RETURN;
        ELSIF job.deadline < now() AND (NOT workers OR job.deadline < now() - interval '1 minute') THEN
            RETURN QUERY SELECT 'overdue', format('Its deadline passed at %s, and no worker has moved it to %s.',
                outbox.why_time(job.deadline), job.on_deadline),
                CASE WHEN workers THEN 'look at the log of `outbox worker`' ELSE 'start a worker: outbox worker --app module:object' END,
                jsonb_build_object('deadline', job.deadline, 'to_status', job.on_deadline);
            RETURN;
        END IF;
    END IF;
    SELECT a.question, a.assignee, a.options, a.asked_at, a.id, a.approvers, a.votes,
           (SELECT string_agg(format('%s of %s', g.value, g.key), ' and ' ORDER BY g.key) FROM jsonb_each_text(a.approvers) AS g) AS voters,
           (SELECT string_agg(outbox.why_word(o.key), ', ' ORDER BY o.key) FROM jsonb_object_keys(a.options) AS o (key)) AS choices,
           (SELECT count(*) FROM (SELECT FROM outbox.approvals AS b WHERE b.workflow_id = workflow.id AND b.ended_at IS NULL LIMIT 100) AS b) AS n
    INTO asked FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id AND a.ended_at IS NULL ORDER BY a.id LIMIT 1;
    IF FOUND THEN
        RETURN QUERY SELECT 'person', format('It waits for %s to answer "%s" (%s%s)%s, since %s%s',
            coalesce(asked.voters, asked.assignee, 'a person'), asked.question, asked.choices,
            CASE WHEN asked.votes > 0 THEN format('; votes so far: %s', asked.votes) ELSE '' END,
            CASE WHEN asked.n > 1 THEN format(' and %s more', asked.n - 1) ELSE '' END, outbox.why_time(asked.asked_at), until),
            outbox.why_command('decide' || CASE WHEN asked.n > 1 THEN ' --question ' || asked.id ELSE '' END, workflow.entity_id,
                'OPTION', workflow.pipeline),
            jsonb_build_object('question', asked.id, 'assignee', asked.assignee, 'approvers', asked.approvers, 'votes', asked.votes,
                               'since', asked.asked_at, 'until', job.deadline, 'questions', asked.n);
        RETURN;
    END IF;
    SELECT t.* INTO awaited FROM outbox.waits AS t WHERE t.workflow_id = workflow.id;
    IF awaited.signal IS NOT NULL THEN
        RETURN QUERY SELECT 'signal', format('It waits for the signal "%s", since %s%s', awaited.signal, outbox.why_time(awaited.since), until),
            outbox.why_command('signal', workflow.entity_id, outbox.why_word(awaited.signal), workflow.pipeline),
            jsonb_build_object('signal', awaited.signal, 'since', awaited.since, 'until', job.deadline);
    ELSIF awaited.children > 0 THEN
        RETURN QUERY SELECT * FROM outbox.why_children(workflow, awaited, until);
    ELSIF awaited.children IS NOT NULL THEN
        RETURN QUERY SELECT 'children ended', format('Its children have ended, but it has not moved from %s to %s%s', workflow.current_status,
            awaited.to_status, CASE WHEN l.legal THEN '.' ELSE ': that is not a legal change.' END),
            CASE WHEN NOT l.legal THEN 'deploy a pipeline that allows it' WHEN workers THEN 'look at the log of `outbox worker`'
                 ELSE 'start a worker: outbox worker --app module:object' END, jsonb_build_object('to_status', awaited.to_status)
        FROM (SELECT EXISTS (SELECT FROM outbox.legal_changes AS l WHERE l.pipeline = workflow.pipeline
                             AND l.from_status = workflow.current_status AND l.to_status = awaited.to_status) AS legal) AS l;
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.why_waits(outbox.workflow_states) IS 'Internal: what a workflow waits for besides a worker.';

-- Which children it waits for: the dead ones first, for they end by themselves never.
CREATE OR REPLACE FUNCTION outbox.why_children(workflow outbox.workflow_states, awaited outbox.waits, until text)
RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
        SELECT CASE WHEN bool_or(c.dead) THEN 'child dead' ELSE 'children' END,
               format('It waits for %s, since %s: %s%s%s', CASE awaited.children WHEN 1 THEN '1 child' ELSE awaited.children || ' children' END,
                      outbox.why_time(awaited.since), string_agg(format('%s in %s (%s%s)', c.entity_id, c.pipeline,
                          c.current_status, CASE WHEN c.dead THEN ', dead' ELSE '' END), ', ' ORDER BY c.n) FILTER (WHERE c.n <= 3),
                      CASE WHEN awaited.children > 3 THEN ' and others' ELSE '' END, until),
               (array_agg(outbox.why_command(CASE WHEN c.dead THEN 'retry' ELSE 'show' END, c.entity_id, NULL, c.pipeline) ORDER BY c.n))[1],
               jsonb_build_object('children', jsonb_agg(jsonb_build_object('pipeline', c.pipeline, 'entity_id', c.entity_id, 'status',
                   c.current_status, 'dead', c.dead) ORDER BY c.n) FILTER (WHERE c.n <= 3), 'since', awaited.since)
        FROM (
            SELECT c.*, row_number() OVER (ORDER BY c.dead DESC, c.pipeline, c.entity_id) AS n
            FROM (SELECT w.pipeline, w.entity_id, w.current_status,
                         EXISTS (SELECT FROM outbox.dead_jobs AS d WHERE d.workflow_id = w.id) AS dead
                  FROM (SELECT c.child_id FROM outbox.children AS c WHERE c.parent_id = workflow.id LIMIT 10000) AS c
                  JOIN outbox.workflow_states AS w ON w.id = c.child_id
                  LEFT JOIN outbox.routes AS r ON r.pipeline = w.pipeline AND r.status = w.current_status
                  WHERE r.final IS NOT TRUE) AS c
        ) AS c;
END
$$;
COMMENT ON FUNCTION outbox.why_children(outbox.workflow_states, outbox.waits, text) IS 'Internal: which children a workflow waits for.';

CREATE OR REPLACE FUNCTION outbox.why(pipeline text, entity_id text)
RETURNS TABLE (cause text, sentence text, remedy text, details jsonb)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    workflow outbox.workflow_states;
    route    outbox.routes;
    job      outbox.jobs;
    dead     outbox.dead_jobs;
    targets  text;
BEGIN
    SELECT w.* INTO workflow FROM outbox.workflow_states AS w WHERE w.pipeline = why.pipeline AND w.entity_id = why.entity_id;
    IF NOT EXISTS (SELECT FROM outbox.pipelines AS p WHERE p.pipeline = why.pipeline) THEN
        RETURN QUERY SELECT 'not deployed', format('Pipeline "%s" is not deployed.', why.pipeline),
            'deploy it: outbox deploy --app module:object', '{}'::jsonb;
        RETURN;
    ELSIF workflow.id IS NULL THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', why.entity_id, why.pipeline
            USING ERRCODE = 'OB011', DETAIL = jsonb_build_object('pipeline', why.pipeline, 'entity_id', why.entity_id)::text;
    END IF;
    SELECT r.* INTO route FROM outbox.routes AS r WHERE r.pipeline = workflow.pipeline AND r.status = workflow.current_status;
    IF route.final THEN
        RETURN QUERY SELECT 'finished', format('It has ended in %s, at %s.', workflow.current_status, outbox.why_time(workflow.updated_at)),
            NULL::text, jsonb_build_object('status', workflow.current_status);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM outbox.why_held(workflow.id);
    IF FOUND THEN
        RETURN;
    ELSIF route.status IS NULL THEN
        RETURN QUERY SELECT 'unknown status', format('It is in %s, which the deployed pipeline does not know.', workflow.current_status),
            'deploy code that knows it: outbox deploy --app module:object', jsonb_build_object('status', workflow.current_status);
        RETURN;
    END IF;
    SELECT d.* INTO dead FROM outbox.dead_jobs AS d WHERE d.workflow_id = workflow.id;
    IF FOUND THEN
        RETURN QUERY SELECT 'dead', format('Its job of stage %s died after %s, at %s: %s', dead.stage,
            CASE dead.attempts WHEN 1 THEN '1 attempt' ELSE dead.attempts || ' attempts' END, outbox.why_time(dead.died_at), dead.error),
            'see to the error, then: ' || outbox.why_command('retry', workflow.entity_id, NULL, workflow.pipeline),
            jsonb_build_object('stage', dead.stage, 'attempts', dead.attempts, 'error', dead.error, 'kind', dead.kind, 'died_at', dead.died_at);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM outbox.why_waits(workflow);
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT j.* INTO job FROM outbox.jobs AS j WHERE j.workflow_id = workflow.id;
    IF job.stage IS NOT NULL THEN
        RETURN QUERY SELECT * FROM outbox.why_job(workflow, job);
        IF NOT FOUND THEN
            RETURN QUERY SELECT * FROM outbox.why_ready(workflow, job);
        END IF;
        RETURN;
    ELSIF route.stage IS NOT NULL THEN
        RETURN QUERY SELECT 'no job', format('Stage %s takes it, but it has no job.', route.stage),
            outbox.why_command('retry', workflow.entity_id, NULL, workflow.pipeline), jsonb_build_object('stage', route.stage);
        RETURN;
    END IF;
    -- Besides a cancellation, which leads out of each status.
    SELECT string_agg(l.to_status, ', ' ORDER BY l.to_status) INTO targets
    FROM outbox.legal_changes AS l JOIN outbox.pipelines AS p ON p.pipeline = l.pipeline
    WHERE l.pipeline = workflow.pipeline AND l.from_status = workflow.current_status AND l.to_status IS DISTINCT FROM p.cancelled;
    RETURN QUERY SELECT
        CASE WHEN targets IS NULL THEN 'dead end' WHEN job.deadline IS NOT NULL THEN 'deadline' ELSE 'change' END,
        CASE WHEN targets IS NULL THEN format('No change leads out of %s, and it is not final.', workflow.current_status)
             ELSE format('It waits in %s for somebody to change its status to %s%s', workflow.current_status, targets,
                  coalesce(', until ' || outbox.why_time(job.deadline) || ', when it moves to ' || job.on_deadline, '') || '.') END,
        CASE WHEN targets IS NULL THEN 'deploy a pipeline that allows one'
             ELSE outbox.why_command('set-status', workflow.entity_id, 'STATUS', workflow.pipeline) END,
        jsonb_build_object('status', workflow.current_status, 'until', job.deadline);
END
$$;
COMMENT ON FUNCTION outbox.why(text, text) IS
    'Says in one sentence why a workflow does not move, and in one what to do. `cause` names the kind of reason.';
