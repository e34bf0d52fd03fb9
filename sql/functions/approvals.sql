-- Questions to people, and their answers. Who may answer is in votes.sql.

CREATE OR REPLACE FUNCTION outbox.shown(metadata jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex');
COMMENT ON FUNCTION outbox.shown(jsonb) IS 'Returns the hash by which a decision says what data it was made on.';

-- Asks the questions that handlers have returned: items with `questions`. An item of an older worker is one question itself.
CREATE OR REPLACE FUNCTION outbox.approvals_begin(items jsonb, ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    owning uuid[];  -- what they are about may name blobs that the workflow's data doesn't
BEGIN
    -- The deadline is that of its job, the handler's or the pipeline's. One of the handler counts from when it is asked. Who asks is the person who has started the workflow,
    -- unless the question says otherwise.
    WITH asked AS (
        INSERT INTO outbox.approvals (workflow_id, pipeline, entity_id, status, version, name, question, data, own_data, shown,
                                      options, ends_wait, edits_allowed, assignee, stage, worker, asked_by, asked_login, approvers,
                                      alone, asked_at, deadline, remind_every, remind_at, escalate_at, escalate_to)
        SELECT w.id, w.pipeline, w.entity_id, w.current_status, w.version, q.name, q.question, coalesce(q.about, w.metadata),
               q.about IS NOT NULL, outbox.shown(coalesce(q.about, w.metadata)), q.options, q.ends_wait, coalesce(q.edits, true),
               q.assignee, c.stage, c.actor, coalesce(q.asked_by, s.actor), CASE WHEN q.asked_by IS NULL THEN s.login END,
               q.approvers, q.alone, coalesce(j.deadline - make_interval(secs => i.within), clock_timestamp()),
               j.deadline, q.remind_every, clock_timestamp() + q.remind_every,
               clock_timestamp() + make_interval(secs => q.escalate_after), q.escalate_to
        FROM (SELECT (e.item ->> 'id')::uuid AS id, (e.item ->> 'within')::float8 AS within,
                     CASE WHEN e.item ? 'questions' THEN e.item -> 'questions'
                          WHEN e.item ->> 'question' IS NOT NULL THEN jsonb_build_array(e.item) ELSE '[]' END AS questions
              FROM jsonb_array_elements(items) AS e (item)) AS i
        CROSS JOIN LATERAL (
            SELECT q.*, make_interval(secs => q.remind) AS remind_every
            FROM ROWS FROM (jsonb_to_recordset(i.questions) AS (
                name text, question text, about jsonb, options jsonb, ends_wait text[], edits boolean, assignee text, asked_by text,
                approvers jsonb, alone text[], remind float8, escalate_after float8, escalate_to text)) WITH ORDINALITY
                AS q (name, question, about, options, ends_wait, edits, assignee, asked_by, approvers, alone, remind,
                      escalate_after, escalate_to, n)) AS q
        JOIN outbox.workflow_states AS w ON w.id = i.id AND i.id = ANY (ids)
        LEFT JOIN outbox.jobs AS j ON j.workflow_id = i.id
        LEFT JOIN outbox.state_changes AS c ON c.workflow_id = w.id AND c.version = w.version
        LEFT JOIN outbox.state_changes AS s ON s.workflow_id = w.id AND s.version = 1
        ORDER BY w.id, q.n
        RETURNING workflow_id, own_data
    )
    SELECT array_agg(DISTINCT asked.workflow_id) INTO owning FROM asked WHERE asked.own_data;
    IF owning IS NOT NULL AND EXISTS (SELECT FROM outbox.blobs) THEN
        PERFORM outbox.blobs_use(owning);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.approvals_begin(jsonb, uuid[]) IS 'Internal: asks the questions that handlers have returned.';

-- Any change of the status ends the questions. Position n of `tos` is where workflow n has gone. A decision has written its
-- answer into the row of its question, and the others are withdrawn. A change by hand answers each question of which an option
-- leads there. Where several options of it do, it is decided, and which of them was meant is not known.
CREATE OR REPLACE FUNCTION outbox.approvals_end(ids uuid[], tos text[], actor text, reason text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    engine   text := outbox.told('outbox.decision');  -- "(deadline)", or "(cancelled)": no person has moved these
    bypassed outbox.approvals;
BEGIN
    IF engine IS NULL THEN
        SELECT a.* INTO bypassed
        FROM unnest(ids, tos) AS c (id, to_status)
        JOIN outbox.approvals AS a ON a.workflow_id = c.id AND a.ended_at IS NULL AND a.approvers IS NOT NULL
        WHERE EXISTS (SELECT FROM jsonb_each_text(a.options) AS o WHERE o.value = c.to_status)
          AND NOT EXISTS (SELECT FROM outbox.approvals AS d
                          WHERE d.workflow_id = c.id AND d.ended_at IS NULL AND d.options ->> d.decision = c.to_status)
        LIMIT 1;
        IF FOUND THEN
            PERFORM outbox.quorum_bypassed(bypassed, tos[array_position(ids, bypassed.workflow_id)]);
        END IF;
    END IF;
    UPDATE outbox.approvals AS a
    SET ended = CASE WHEN engine = '(deadline)' THEN 'deadline' WHEN d.answer IS NOT NULL THEN 'decided'
                     WHEN engine IS NULL AND NOT d.another AND cardinality(d.leading) > 0 THEN 'decided' ELSE 'withdrawn' END,
        decision = CASE WHEN engine IS NOT NULL THEN NULL WHEN d.answer IS NOT NULL THEN d.answer
                        WHEN NOT d.another AND cardinality(d.leading) = 1 THEN d.leading[1] END,
        to_status = d.to_status, decided_by = actor, login = session_user, reason = approvals_end.reason,
        ended_at = clock_timestamp()
    FROM (
        SELECT o.id, o.to_status, o.answer, o.leading, bool_or(o.answer IS NOT NULL) OVER (PARTITION BY o.workflow_id) AS another
        FROM (
            SELECT o.id, o.workflow_id, c.to_status, CASE WHEN o.options ->> o.decision = c.to_status THEN o.decision END AS answer,
                   ARRAY(SELECT e.key FROM jsonb_each_text(o.options) AS e (key, value) WHERE e.value = c.to_status) AS leading
            FROM unnest(ids, tos) AS c (id, to_status)
            JOIN outbox.approvals AS o ON o.workflow_id = c.id AND o.ended_at IS NULL
        ) AS o
    ) AS d
    WHERE a.id = d.id;
END
$$;
COMMENT ON FUNCTION outbox.approvals_end(uuid[], text[], text, text) IS
    'Internal: ends the questions of workflows that have moved on.';

CREATE OR REPLACE FUNCTION outbox.quorum_bypassed(asked outbox.approvals, to_status text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'pipeline "%", entity "%": only votes on "%" lead to %, because the question has approvers',
        asked.pipeline, asked.entity_id, asked.question, to_status
        USING ERRCODE = 'OB020',
              DETAIL = jsonb_build_object('pipeline', asked.pipeline, 'entity_id', asked.entity_id, 'question', asked.id,
                                          'approvers', asked.approvers, 'to_status', to_status)::text,
              HINT = 'Vote: outbox decide ENTITY OPTION, or outbox.decide(). A change to any other status withdraws the question.';
END
$$;
COMMENT ON FUNCTION outbox.quorum_bypassed(outbox.approvals, text) IS
    'Internal: refuses a change of a status that only votes may make.';

-- What belongs to workflows that are deleted.
CREATE OR REPLACE FUNCTION outbox.approvals_forget(ids uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    gone uuid[];
BEGIN
    WITH deleted AS (DELETE FROM outbox.approvals AS a WHERE a.workflow_id = ANY (ids) RETURNING a.id)
    SELECT array_agg(deleted.id) INTO gone FROM deleted;
    IF gone IS NOT NULL THEN
        DELETE FROM outbox.approval_votes AS v WHERE v.approval_id = ANY (gone);
        DELETE FROM outbox.approval_links AS l WHERE l.approval_id = ANY (gone);
    END IF;
END
$$;
COMMENT ON FUNCTION outbox.approvals_forget(uuid[]) IS 'Internal: deletes the questions of workflows, with votes and links.';

-- Finds the question that an answer is meant for: the one with this id, else the only open one, else one of the last that were
-- asked, as an answer may be repeated, or come too late. The caller has locked the workflow.
CREATE OR REPLACE FUNCTION outbox.question_meant(
    workflow outbox.workflow_states, question uuid, decision text, label text
) RETURNS outbox.approvals
LANGUAGE plpgsql
AS $$
DECLARE
    asked outbox.approvals;
    ids   uuid[];  -- those that are open
    told  jsonb := jsonb_build_object('pipeline', workflow.pipeline, 'entity_id', workflow.entity_id);
BEGIN
    IF question_meant.question IS NOT NULL THEN
        SELECT * INTO asked FROM outbox.approvals AS a WHERE a.id = question_meant.question AND a.workflow_id = workflow.id;
    ELSE
        ids := ARRAY(SELECT a.id FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id AND a.ended_at IS NULL
                     ORDER BY a.asked_at, a.id);
        IF cardinality(ids) > 1 THEN
            RAISE EXCEPTION 'pipeline "%", entity "%": several questions are open, and it is not said which one is answered',
                workflow.pipeline, workflow.entity_id
                USING ERRCODE = 'OB021', DETAIL = (told || jsonb_build_object('questions', ids))::text,
                      HINT = 'Name one of them, question => ID (--question ID): ' || (
                          SELECT string_agg(format('%s (%s)', a.id, a.question), ', ' ORDER BY a.asked_at, a.id)
                          FROM outbox.approvals AS a WHERE a.id = ANY (ids));
        END IF;
        SELECT * INTO asked FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id
        ORDER BY a.version DESC, a.ended_at IS NULL DESC, (a.decision, a.decided_by) IS NOT DISTINCT FROM (question_meant.decision, label) DESC,
                 a.ended_at DESC
        LIMIT 1;
    END IF;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": %, it is in %', workflow.pipeline, workflow.entity_id,
            CASE WHEN question IS NULL THEN 'nothing is asked' ELSE format('it has no question %s', question) END,
            workflow.current_status
            USING ERRCODE = 'OB012', DETAIL = (told || jsonb_build_object('status', workflow.current_status))::text,
                  HINT = 'outbox approvals lists the open questions.';
    END IF;
    RETURN asked;
END
$$;
COMMENT ON FUNCTION outbox.question_meant(outbox.workflow_states, uuid, text, text) IS
    'Internal: finds the question that an answer is meant for.';

-- Whether this person has given this answer before: in the name of others, too. One with another edit is another answer.
CREATE OR REPLACE FUNCTION outbox.answered_so(
    asked outbox.approvals, decision text, actor text, shown text, edited jsonb
) RETURNS boolean
LANGUAGE sql
AS $$
    SELECT coalesce(asked.ended = 'decided' AND (asked.decision, asked.decided_by) = (answered_so.decision, actor)
                    AND (answered_so.edited IS NULL OR answered_so.edited = asked.edited), false)
        OR EXISTS (SELECT FROM outbox.approval_votes AS v
                   WHERE v.approval_id = asked.id AND v.cast_by = actor AND v.option = answered_so.decision
                     AND CASE WHEN answered_so.edited IS NOT NULL THEN v.shown = outbox.shown(answered_so.edited)
                              ELSE asked.ended IS NOT NULL OR v.shown = coalesce(answered_so.shown, v.shown) END);
$$;
COMMENT ON FUNCTION outbox.answered_so(outbox.approvals, text, text, text, jsonb) IS
    'Internal: tells whether somebody has given this answer before.';

-- Refuses an answer that comes too late, or that the question doesn't take. Returns the hash of the data as it is now.
CREATE OR REPLACE FUNCTION outbox.answer_checked(
    asked outbox.approvals, metadata jsonb, decision text, edit jsonb, about jsonb, shown text
) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    seen    text;
    options text[];
    told    jsonb := jsonb_build_object('pipeline', asked.pipeline, 'entity_id', asked.entity_id);
BEGIN
    IF asked.ended IS NOT NULL THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": too late, % by % at %', asked.pipeline, asked.entity_id,
            CASE asked.ended WHEN 'decided' THEN 'it was decided: ' || coalesce(asked.decision, 'moved to ' || asked.to_status)
                             WHEN 'deadline' THEN 'the deadline has passed: moved to ' || asked.to_status
                             ELSE 'the question was withdrawn: '
                                 || coalesce('moved to ' || nullif(asked.to_status, asked.status), asked.reason, 'no reason is known') END,
            asked.decided_by, to_char(asked.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')
            USING ERRCODE = 'OB013',
                  DETAIL = (told || jsonb_build_object('by', asked.decided_by, 'at', asked.ended_at, 'ended', asked.ended,
                                                       'decision', asked.decision, 'to_status', asked.to_status))::text;
    END IF;
    seen := outbox.shown(CASE WHEN asked.own_data THEN coalesce(asked.edited, asked.data) ELSE metadata END);
    IF NOT coalesce(asked.options ? answer_checked.decision, false) THEN
        options := ARRAY(SELECT o.key FROM jsonb_object_keys(asked.options) AS o (key) ORDER BY o.key);
        RAISE EXCEPTION 'pipeline "%", entity "%": "%" is not an option of "%"', asked.pipeline, asked.entity_id,
            answer_checked.decision, asked.question
            USING ERRCODE = 'OB014',
                  DETAIL = (told || jsonb_build_object('decision', answer_checked.decision, 'options', options))::text,
                  HINT = 'Its options: ' || array_to_string(options, ', ');
    ELSIF seen <> coalesce(answer_checked.shown, asked.shown) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": the data has changed since it was shown', asked.pipeline,
            asked.entity_id
            USING ERRCODE = 'OB015', DETAIL = (told || jsonb_build_object('shown', seen))::text,
                  HINT = 'Look at it again, and decide with shown => HASH (--shown HASH), which is now ' || seen;
    ELSIF coalesce(answer_checked.edit, answer_checked.about) IS NOT NULL AND NOT asked.edits_allowed
        OR (CASE WHEN asked.own_data THEN answer_checked.edit ELSE answer_checked.about END) IS NOT NULL
    THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": "%" %', asked.pipeline, asked.entity_id, asked.question,
            CASE WHEN NOT asked.edits_allowed THEN 'is to be answered as it is, without an edit'
                 WHEN asked.own_data THEN 'is about data of its own, and an edit is of the workflow''s'
                 ELSE 'is about the workflow''s data, and has none of its own' END
            USING ERRCODE = 'OB023', DETAIL = (told || jsonb_build_object('question', asked.id))::text,
                  HINT = CASE WHEN NOT asked.edits_allowed THEN 'Decide without edit and about (--edit, --about).'
                              WHEN asked.own_data THEN 'Give about (--about) instead of edit (--edit).'
                              ELSE 'Give edit (--edit) instead of about (--about).' END;
    END IF;
    RETURN seen;
END
$$;
COMMENT ON FUNCTION outbox.answer_checked(outbox.approvals, jsonb, text, jsonb, jsonb, text) IS
    'Internal: refuses an answer that the question doesn''t take.';

-- Exactly one answer to a question wins. Later ones are told who has decided, and when. The same answer by the same person is
-- not an error: a network may repeat it. Where a question has approvers, an answer is a vote, and the last one needed decides.
-- The last question that is decided moves the workflow, or the first one with an answer that ends the wait.
CREATE OR REPLACE FUNCTION outbox.decide(
    pipeline text, entity_id text, decision text, decided_by text DEFAULT NULL, reason text DEFAULT NULL,
    edit jsonb DEFAULT NULL, shown text DEFAULT NULL, question uuid DEFAULT NULL, groups text[] DEFAULT NULL,
    about jsonb DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow outbox.workflow_states;
    asked    outbox.approvals;
    target   text;
    seen     text;     -- the hash of the data as it is now
    edited   jsonb;    -- what the answer makes of the data that the question is about: its own, or the workflow's
    actor    text := coalesce(outbox.actor_named(decide.decided_by), outbox.actor());
BEGIN
    -- The workflow first, as everywhere: then no other decision and no deadline is under way.
    workflow := outbox.workflow_locked(decide.pipeline, decide.entity_id);
    asked := outbox.question_meant(workflow, decide.question, decide.decision, actor);
    decide.edit := outbox.data_stamped(decide.edit, outbox.plain_of(decide.pipeline));
    edited := CASE WHEN asked.own_data THEN decide.about ELSE decide.edit END;
    IF asked.approvers IS NOT NULL THEN
        actor := outbox.voter(asked, decide.decided_by, decide.groups);
    END IF;
    IF outbox.answered_so(asked, decide.decision, actor, decide.shown, coalesce(decide.about, decide.edit)) THEN
        RETURN coalesce(asked.to_status, workflow.current_status);
    END IF;
    seen := outbox.answer_checked(asked, workflow.metadata, decide.decision, decide.edit, decide.about, decide.shown);
    target := asked.options ->> decide.decision;
    IF edited IS NOT NULL THEN
        UPDATE outbox.approvals AS a SET edited = coalesce(decide.about, decide.edit) WHERE a.id = asked.id;
        PERFORM outbox.blobs_use(ARRAY[workflow.id]) WHERE EXISTS (SELECT FROM outbox.blobs);
    END IF;
    IF asked.approvers IS NOT NULL AND NOT outbox.vote_counts(
        asked, decide.decision, actor, decide.groups, decide.reason, coalesce(outbox.shown(edited), seen))
    THEN
        NULL;  -- more votes are needed
    ELSIF asked.effect IS NOT NULL THEN
        PERFORM outbox.effect_answered(asked, decide.decision, actor, decide.reason, coalesce(decide.about, asked.edited));
    ELSIF decide.decision = ANY (asked.ends_wait) OR NOT EXISTS (
        SELECT FROM outbox.approvals AS a WHERE a.workflow_id = workflow.id AND a.ended_at IS NULL AND a.id <> asked.id)
    THEN
        -- It says so in the row, where a session can't write.
        UPDATE outbox.approvals AS a SET decision = decide.decision WHERE a.id = asked.id;
        PERFORM outbox.workflow_move(workflow.id, target, decide.reason, actor, decide.edit);
        RETURN target;
    ELSE
        UPDATE outbox.approvals AS a
        SET ended = 'decided', decision = decide.decision, decided_by = actor, login = session_user, reason = decide.reason,
            ended_at = clock_timestamp()
        WHERE a.id = asked.id;
    END IF;
    -- The workflow stays. It is written nevertheless: another answer that is under way at a higher isolation level would not
    -- see this one, and must fail.
    UPDATE outbox.workflow_states AS w SET metadata = coalesce(decide.edit, w.metadata) WHERE w.id = workflow.id;
    RETURN workflow.current_status;
END
$$;
COMMENT ON FUNCTION outbox.decide(text, text, text, text, text, jsonb, text, uuid, text[], jsonb) IS
    'Answers the open question of a workflow, or the one with the id `question`, with one of its options, and returns the status '
    'that the workflow then has. `edit` becomes its data; `about` replaces that of a question with data of its own. `shown` is the '
    'hash of the data that the answer is about, if not that of the question. `groups` are those of the person spoken for.';
REVOKE EXECUTE ON FUNCTION outbox.approvals_begin(jsonb, uuid[]), outbox.approvals_end(uuid[], text[], text, text),
    outbox.quorum_bypassed(outbox.approvals, text), outbox.approvals_forget(uuid[]),
    outbox.question_meant(outbox.workflow_states, uuid, text, text),
    outbox.answered_so(outbox.approvals, text, text, text, jsonb),
    outbox.answer_checked(outbox.approvals, jsonb, text, jsonb, jsonb, text),
    outbox.decide(text, text, text, text, text, jsonb, text, uuid, text[], jsonb) FROM PUBLIC;
