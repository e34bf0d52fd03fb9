-- Links by which one person answers one question, once. Their signatures are made and checked by client/links.py: the database
-- has no key. So only a role that may speak for others makes and uses links.

CREATE OR REPLACE FUNCTION outbox.approval_link(
    pipeline text, entity_id text, person text, until timestamptz, question uuid DEFAULT NULL, groups text[] DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow outbox.workflow_states;
    asked    outbox.approvals;
    made     uuid;
BEGIN
    IF coalesce(outbox.actor_named(approval_link.person), '') = '' THEN
        RAISE EXCEPTION 'a link is for a person' USING ERRCODE = '22023';
    ELSIF approval_link.until IS NULL OR approval_link.until <= clock_timestamp() OR approval_link.until = 'infinity' THEN
        RAISE EXCEPTION 'a link has an end, which is later than now' USING ERRCODE = '22023';
    END IF;
    workflow := outbox.workflow_locked(approval_link.pipeline, approval_link.entity_id);
    asked := outbox.question_meant(workflow, approval_link.question, NULL, NULL);
    IF asked.ended IS NOT NULL THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": "%" is not open any more, it is in %', workflow.pipeline, workflow.entity_id,
            asked.question, workflow.current_status
            USING ERRCODE = 'OB012',
                  DETAIL = jsonb_build_object('pipeline', workflow.pipeline, 'entity_id', workflow.entity_id,
                                              'status', workflow.current_status)::text;
    END IF;
    INSERT INTO outbox.approval_links AS l (approval_id, person, groups, until)
    VALUES (asked.id, approval_link.person, approval_link.groups, approval_link.until) RETURNING l.id INTO made;
    RETURN made;
END
$$;
COMMENT ON FUNCTION outbox.approval_link(text, text, text, timestamptz, uuid, text[]) IS
    'Internal: makes a link for one person to one question, and returns its id, which the client signs.';

-- The decision takes the link: both are one commit.
CREATE OR REPLACE FUNCTION outbox.link_use(
    link uuid, decision text, reason text DEFAULT NULL, edit jsonb DEFAULT NULL, shown text DEFAULT NULL, about jsonb DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked  outbox.approvals;
    used   outbox.approval_links;
    status text;
    why    text;
    edited jsonb;
BEGIN
    SELECT a.* INTO asked FROM outbox.approval_links AS l JOIN outbox.approvals AS a ON a.id = l.approval_id WHERE l.id = link;
    -- The workflow first, as everywhere.
    SELECT w.current_status INTO status FROM outbox.workflow_states AS w WHERE w.id = asked.workflow_id FOR NO KEY UPDATE;
    SELECT * INTO used FROM outbox.approval_links AS l WHERE l.id = link FOR UPDATE;
    edited := coalesce(link_use.about, outbox.data_stamped(link_use.edit, outbox.plain_of(asked.pipeline)));
    why := CASE WHEN used.id IS NULL THEN 'unknown' WHEN used.decision <> link_use.decision THEN 'used'
                WHEN used.decision IS NOT NULL AND edited IS NOT NULL
                    AND NOT outbox.answered_so(asked, link_use.decision, used.person, link_use.shown, edited) THEN 'used'
                WHEN used.decision IS NULL AND used.until <= clock_timestamp() THEN 'expired' END;
    IF why IS NOT NULL THEN
        RAISE EXCEPTION 'this link can''t be used: %', CASE why
            WHEN 'unknown' THEN 'what it was for is gone' WHEN 'used' THEN format('it was used to answer %s', used.decision)
            ELSE 'its time is over' END
            USING ERRCODE = 'OB024',
                  DETAIL = jsonb_build_object('pipeline', asked.pipeline, 'entity_id', asked.entity_id, 'question', asked.id,
                                              'person', used.person, 'why', why)::text;
    ELSIF used.decision IS NOT NULL THEN
        RETURN status;
    END IF;
    UPDATE outbox.approval_links AS l SET decision = link_use.decision, used_at = clock_timestamp() WHERE l.id = link;
    RETURN outbox.decide(asked.pipeline, asked.entity_id, link_use.decision, used.person, link_use.reason, link_use.edit,
                         link_use.shown, asked.id, used.groups, link_use.about);
END
$$;
COMMENT ON FUNCTION outbox.link_use(uuid, text, text, jsonb, text, jsonb) IS
    'Internal: answers the question of a link in the name of its person. The client has checked the signature.';
REVOKE EXECUTE ON FUNCTION outbox.approval_link(text, text, text, timestamptz, uuid, text[]),
    outbox.link_use(uuid, text, text, jsonb, text, jsonb) FROM PUBLIC;
