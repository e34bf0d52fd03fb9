-- Effects that are unknown: what people are asked of them, and what becomes of their answers.

-- What is known of an effect. One whose attempt goes on is started; it is unknown once that has ended without a result, or its
-- function has raised. A person is asked, or the next attempt finds out.
CREATE OR REPLACE FUNCTION outbox.effect_state(effect outbox.effects) RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN effect.state <> 'started' THEN effect.state
        WHEN EXISTS (SELECT FROM outbox.approvals AS a
                     WHERE a.workflow_id = effect.workflow_id AND a.ended_at IS NULL AND a.effect = effect.call) THEN 'asked'
        WHEN effect.error IS NULL AND EXISTS (
            SELECT FROM outbox.jobs AS j
            WHERE j.workflow_id = effect.workflow_id AND j.entered = effect.entered AND j.attempt = effect.attempt
              AND j.owner IS NOT NULL) THEN 'started'
        ELSE 'unknown' END
$$;
COMMENT ON FUNCTION outbox.effect_state(outbox.effects) IS
    'Returns what is known of an effect: started, done, not done, unknown, or asked (it is unknown, and a person is asked).';

-- Asks people what has become of calls, and parks the job, which waits in its status: nothing runs it until all have been
-- answered. It changes nothing unless this attempt still holds the job. Returns true if it is asked, also by an earlier call
-- whose answer was lost; false if the job is not held; null if another session has locked the workflow.
CREATE OR REPLACE FUNCTION outbox.effects_ask(
    workflow uuid, job bigint, worker integer, attempt integer, questions jsonb
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    asking outbox.workflow_states;
    held   outbox.jobs;
BEGIN
    -- The workflow first, as everywhere: then no change by hand is under way, which would not see the question.
    SELECT * INTO asking FROM outbox.workflow_states AS w WHERE w.id = effects_ask.workflow FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN CASE WHEN NOT EXISTS (SELECT FROM outbox.workflow_states AS w WHERE w.id = effects_ask.workflow) THEN false END;
    END IF;
    UPDATE outbox.jobs AS j
    SET owner = NULL, claimed_at = NULL, attempt = j.attempt - 1, due = NULL, run_at = clock_timestamp(), error = NULL, progress = NULL
    WHERE j.workflow_id = asking.id AND j.id = effects_ask.job AND j.owner = effects_ask.worker AND j.attempt = effects_ask.attempt
    RETURNING j.* INTO held;
    IF NOT FOUND THEN
        RETURN EXISTS (SELECT FROM outbox.approvals AS a
                       WHERE a.workflow_id = asking.id AND a.ended_at IS NULL
                         AND a.effect IN (SELECT (q.asked ->> 'call')::uuid FROM jsonb_array_elements(questions) AS q (asked)));
    END IF;
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, name, question, data, own_data, shown, options,
                                  assignee, stage, worker, asked_by, asked_login, approvers, alone, asked_at, deadline, effect)
    SELECT asking.id, asking.pipeline, asking.entity_id, asking.current_status, asking.version, e.name, q.question, d.data, true,
           outbox.shown(d.data),
           jsonb_build_object('yes', asking.current_status, 'no', asking.current_status, 'repeat', asking.current_status),
           q.assignee, held.stage, 'worker-' || worker, s.actor, s.login, q.approvers, '{}', clock_timestamp(), held.deadline, e.call
    FROM ROWS FROM (jsonb_to_recordset(questions) AS (
             call uuid, key text, question text, about jsonb, assignee text, approvers jsonb, error text)) WITH ORDINALITY
         AS q (call, key, question, about, assignee, approvers, error, n)
    JOIN outbox.effects AS e ON e.workflow_id = asking.id AND e.entered = held.entered AND e.call = q.call
    CROSS JOIN LATERAL (
        SELECT jsonb_build_object('effect', e.name, 'idempotency_key', q.key, 'function', e.function, 'called_at', e.started_at,
                                  'attempt', e.attempt, 'error', coalesce(q.error, e.error), 'result', NULL)
               || CASE WHEN q.about IS NULL THEN '{}' ELSE jsonb_build_object('about', q.about) END AS data) AS d
    LEFT JOIN outbox.state_changes AS s ON s.workflow_id = asking.id AND s.version = 1
    ORDER BY q.n;
    -- An effect of an earlier answer that can't be used is unknown again.
    UPDATE outbox.effects AS e SET state = 'started', result = NULL, blob = NULL, known_by = NULL, ended_at = NULL
    WHERE e.workflow_id = asking.id AND e.entered = held.entered
      AND e.call IN (SELECT (q.asked ->> 'call')::uuid FROM jsonb_array_elements(questions) AS q (asked));
    RETURN true;
END
$$;
COMMENT ON FUNCTION outbox.effects_ask(uuid, bigint, integer, integer, jsonb) IS
    'Internal: asks people what has become of calls, and parks the job of their attempt.';

-- What the answer to a question about a call does. The caller has locked the workflow. "yes": it has happened, with the result
-- that the answer has put beside the question. "no" and "repeat": the next attempt makes the call. When all is answered, the
-- job is due.
CREATE OR REPLACE FUNCTION outbox.effect_answered(asked outbox.approvals, decision text, actor text, reason text, about jsonb)
RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    due record;
BEGIN
    -- A result in another place would not be found, and the handler would get null.
    IF effect_answered.decision = 'yes' AND about IS NOT NULL AND NOT (jsonb_typeof(about) = 'object' AND about ? 'result') THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": the answer to "%" has no result', asked.pipeline, asked.entity_id, asked.question
            USING ERRCODE = 'OB023',
                  DETAIL = jsonb_build_object('pipeline', asked.pipeline, 'entity_id', asked.entity_id, 'question', asked.id)::text,
                  HINT = 'Give about (--about) as {"result": ...}, or leave it out: then the result is null.';
    END IF;
    UPDATE outbox.approvals AS a
    SET ended = 'decided', decision = effect_answered.decision, to_status = a.status, decided_by = actor, login = session_user,
        reason = effect_answered.reason, ended_at = clock_timestamp()
    WHERE a.id = asked.id;
    UPDATE outbox.effects AS e
    SET state = CASE effect_answered.decision WHEN 'yes' THEN 'done' ELSE 'not done' END,
        result = CASE effect_answered.decision WHEN 'yes' THEN coalesce(about -> 'result', 'null') END,
        known_by = actor, ended_at = clock_timestamp()
    WHERE e.workflow_id = asked.workflow_id AND e.call = asked.effect AND e.state = 'started';
    IF EXISTS (SELECT FROM outbox.approvals AS a
               WHERE a.workflow_id = asked.workflow_id AND a.ended_at IS NULL AND a.effect IS NOT NULL) THEN
        RETURN;
    END IF;
    UPDATE outbox.jobs AS j
    SET due = true, run_at = clock_timestamp(),
        -- The data may have changed during the attempt. An unlimited job has neither.
        (partition, priority) = (SELECT r.partition, r.priority FROM outbox.workflow_states AS w
                                 CROSS JOIN LATERAL outbox.job_of(w.pipeline, j.status, w.metadata) AS r
                                 WHERE w.id = j.workflow_id AND j.partition IS NOT NULL)
    WHERE j.workflow_id = asked.workflow_id AND j.due IS NULL
    RETURNING j.pipeline, j.stage INTO due;
    IF FOUND THEN
        PERFORM outbox.wake(ARRAY[due.pipeline], ARRAY[due.stage]);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.effect_answered(outbox.approvals, text, text, text, jsonb) IS
    'Internal: does what the answer to a question about a call means.';
REVOKE EXECUTE ON FUNCTION outbox.effects_ask(uuid, bigint, integer, integer, jsonb),
    outbox.effect_answered(outbox.approvals, text, text, text, jsonb) FROM PUBLIC;
