-- Questions to people, and their answers.

CREATE OR REPLACE FUNCTION outbox.shown(metadata jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex');
COMMENT ON FUNCTION outbox.shown(jsonb) IS 'Returns the hash by which a decision says what data it was made on.';

-- Asks the questions that handlers have returned: items with a `question`.
CREATE OR REPLACE FUNCTION outbox.approvals_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- The deadline is that of its job, and counts from when it is asked.
    INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, question, shown, options, assignee,
                                  asked_at, deadline, remind_every, remind_at)
    SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.version, i.question, outbox.shown(w.metadata), i.options,
           i.assignee, coalesce(j.deadline - make_interval(secs => i.within), clock_timestamp()),
           CASE WHEN i.within IS NOT NULL THEN j.deadline END, i.remind_every, clock_timestamp() + i.remind_every
    FROM (SELECT i.*, make_interval(secs => i.remind) AS remind_every
          FROM jsonb_to_recordset(items) AS i (id uuid, question text, options jsonb, assignee text, within float8,
                                               remind float8)) AS i
    JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
    LEFT JOIN outbox.jobs AS j ON j.workflow_id = i.id
    WHERE i.question IS NOT NULL
    ORDER BY w.id;
END
$$;
COMMENT ON FUNCTION outbox.approvals_begin(jsonb, uuid[]) IS 'Internal: asks the questions that handlers have returned.';

-- Any change of the status answers the question. Position n of `tos` is where workflow n has gone. A decision has written its
-- answer into the row. Where several options lead there, it is decided, and which of them was meant is not known.
CREATE OR REPLACE FUNCTION outbox.approvals_end(ids uuid[], tos text[], actor text, reason text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    overdue boolean := coalesce(outbox.told('outbox.decision') = '(deadline)', false);
BEGIN
    UPDATE outbox.approvals AS a
    SET ended = CASE WHEN overdue THEN 'deadline'
                     WHEN d.said IS NOT NULL OR cardinality(d.leading) > 0 THEN 'decided' ELSE 'withdrawn' END,
        decision = CASE WHEN overdue THEN NULL WHEN d.said IS NOT NULL THEN d.said
                        WHEN cardinality(d.leading) = 1 THEN d.leading[1] END,
        to_status = d.to_status, decided_by = actor, login = session_user, reason = approvals_end.reason,
        ended_at = clock_timestamp()
    FROM (
        SELECT o.workflow_id, c.to_status, CASE WHEN o.options ->> o.decision = c.to_status THEN o.decision END AS said,
               ARRAY(SELECT e.key FROM jsonb_each_text(o.options) AS e (key, value) WHERE e.value = c.to_status) AS leading
        FROM unnest(ids, tos) AS c (id, to_status)
        JOIN outbox.approvals AS o ON o.workflow_id = c.id AND o.ended_at IS NULL
    ) AS d
    WHERE a.workflow_id = d.workflow_id AND a.ended_at IS NULL;
END
$$;
COMMENT ON FUNCTION outbox.approvals_end(uuid[], text[], text, text) IS
    'Internal: ends the questions of workflows that have moved on.';
REVOKE EXECUTE ON FUNCTION outbox.approvals_begin(jsonb, uuid[]), outbox.approvals_end(uuid[], text[], text, text) FROM PUBLIC;

-- Exactly one answer wins. Later ones are told who has decided, and when. The same answer by the same person is not an
-- error: a network may repeat it.
CREATE OR REPLACE FUNCTION outbox.decide(
    pipeline text, entity_id text, decision text, decided_by text DEFAULT NULL, reason text DEFAULT NULL,
    edit jsonb DEFAULT NULL, shown text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow outbox.workflow_states;
    asked    outbox.approvals;
    target   text;
    options  text[];
    actor    text := coalesce(outbox.actor_named(decide.decided_by), outbox.actor());
    told     jsonb := jsonb_build_object('pipeline', decide.pipeline, 'entity_id', decide.entity_id);
BEGIN
    -- The workflow first, as everywhere: then no other decision and no deadline is under way.
    SELECT * INTO workflow FROM outbox.workflow_states AS w
    WHERE w.pipeline = decide.pipeline AND w.entity_id = decide.entity_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no workflow of entity "%" in pipeline "%"', decide.entity_id, decide.pipeline
            USING ERRCODE = 'OB011', DETAIL = told::text;
    END IF;
    SELECT * INTO asked FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id ORDER BY a.version DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": nothing is asked, it is in %', workflow.pipeline, workflow.entity_id,
            workflow.current_status
            USING ERRCODE = 'OB012', DETAIL = (told || jsonb_build_object('status', workflow.current_status))::text,
                  HINT = 'outbox approvals lists the open questions.';
    ELSIF asked.ended = 'decided' AND (asked.decision, asked.decided_by) = (decide.decision, actor) THEN
        RETURN asked.to_status;
    ELSIF asked.ended IS NOT NULL THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": too late, % by % at %', workflow.pipeline, workflow.entity_id,
            CASE asked.ended WHEN 'decided' THEN 'it was decided: ' || coalesce(asked.decision, 'moved to ' || asked.to_status)
                             WHEN 'deadline' THEN 'the deadline has passed: moved to ' || asked.to_status
                             ELSE 'the question was withdrawn: moved to ' || asked.to_status END,
            asked.decided_by, to_char(asked.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
            USING ERRCODE = 'OB013',
                  DETAIL = (told || jsonb_build_object('by', asked.decided_by, 'at', asked.ended_at, 'ended', asked.ended,
                                                       'decision', asked.decision, 'to_status', asked.to_status))::text;
    END IF;
    target := asked.options ->> decide.decision;
    IF target IS NULL THEN
        options := ARRAY(SELECT o.key FROM jsonb_object_keys(asked.options) AS o (key) ORDER BY o.key);
        RAISE EXCEPTION 'pipeline "%", entity "%": "%" is not an option of "%"', workflow.pipeline, workflow.entity_id,
            decide.decision, asked.question
            USING ERRCODE = 'OB014',
                  DETAIL = (told || jsonb_build_object('decision', decide.decision, 'options', options))::text,
                  HINT = 'Its options: ' || array_to_string(options, ', ');
    ELSIF outbox.shown(workflow.metadata) <> coalesce(decide.shown, asked.shown) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": the data has changed since it was shown', workflow.pipeline,
            workflow.entity_id
            USING ERRCODE = 'OB015',
                  DETAIL = (told || jsonb_build_object('shown', outbox.shown(workflow.metadata)))::text,
                  HINT = 'Look at it again and decide with shown = ' || outbox.shown(workflow.metadata);
    END IF;
    decide.edit := outbox.data_stamped(decide.edit, outbox.plain_of(decide.pipeline));
    PERFORM outbox.workflow_move(workflow.id, target, decide.reason, actor, decide.decision, decide.edit);
    UPDATE outbox.approvals AS a SET edited = decide.edit WHERE a.id = asked.id AND decide.edit IS NOT NULL;
    RETURN target;
END
$$;
COMMENT ON FUNCTION outbox.decide(text, text, text, text, text, jsonb, text) IS
    'Answers the open question of a workflow with one of its options, and returns the status that the workflow then has. '
    '`edit` becomes its data. `shown` is the hash of the data that the answer is about, if not that of the question.';
REVOKE EXECUTE ON FUNCTION outbox.decide(text, text, text, text, text, jsonb, text) FROM PUBLIC;
