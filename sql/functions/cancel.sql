-- Cancelling: a workflow that is not to go on moves to the status that its pipeline has for it, whatever it is at. It is a
-- change as any other: its job ends, so that what a running attempt writes no longer counts, and so do its questions and waits.

-- The children that a cancelled workflow waits for are cancelled, too, where their pipeline has a status for it: those that
-- were spawned without a status of their own for that. Position n of `tos` is where parent n, whose wait ends, has gone.
CREATE OR REPLACE FUNCTION outbox.children_cancel(ids uuid[], tos text[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM outbox.definition_require_current(outbox.pipelines_of_children(parent.id)) FROM unnest(ids) AS parent (id)
    WHERE current_setting('transaction_isolation') <> 'read committed'; -- else the children need not be looked at
    UPDATE outbox.children AS c SET cancel_to = theirs.cancelled
    FROM unnest(ids, tos) AS parent (id, to_status), outbox.workflow_states AS w, outbox.pipelines AS ours,
         outbox.workflow_states AS child, outbox.pipelines AS theirs
    WHERE w.id = parent.id AND ours.pipeline = w.pipeline AND ours.cancelled = parent.to_status
      AND c.parent_id = parent.id AND c.cancel_to IS NULL
      AND child.id = c.child_id AND theirs.pipeline = child.pipeline AND theirs.cancelled IS NOT NULL;
END
$$;
COMMENT ON FUNCTION outbox.children_cancel(uuid[], text[]) IS
    'Internal: has the children that cancelled workflows wait for be cancelled, too.';
REVOKE EXECUTE ON FUNCTION outbox.children_cancel(uuid[], text[]) FROM PUBLIC;

CREATE OR REPLACE FUNCTION outbox.cancel(
    pipeline text, entity_id text, cancelled_by text DEFAULT NULL, reason text DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    workflow outbox.workflow_states;
    target   text;
    told     jsonb := jsonb_build_object('pipeline', cancel.pipeline, 'entity_id', cancel.entity_id);
BEGIN
    workflow := outbox.workflow_locked(cancel.pipeline, cancel.entity_id);
    SELECT p.cancelled INTO target FROM outbox.pipelines AS p WHERE p.pipeline = workflow.pipeline;
    IF target IS NULL THEN
        RAISE EXCEPTION 'pipeline "%" has no status for cancelled workflows: entity "%" stays in %', workflow.pipeline,
            workflow.entity_id, workflow.current_status
            USING ERRCODE = 'OB032', DETAIL = (told || jsonb_build_object('status', workflow.current_status))::text,
                  HINT = 'Name one, Pipeline(..., cancelled="CANCELLED"), and deploy; or change the status to a legal one.';
    ELSIF workflow.current_status <> target AND EXISTS (
        SELECT FROM outbox.routes AS r
        WHERE r.pipeline = workflow.pipeline AND r.status = workflow.current_status AND r.final) THEN
        RAISE EXCEPTION 'pipeline "%", entity "%": too late to cancel it, it has ended in %', workflow.pipeline,
            workflow.entity_id, workflow.current_status
            USING ERRCODE = 'OB001',
                  DETAIL = (told || jsonb_build_object('from_status', workflow.current_status, 'to_status', target))::text,
                  HINT = 'A workflow in a final status has ended.';
    ELSIF workflow.current_status <> target THEN
        PERFORM outbox.workflow_move(workflow.id, target, coalesce(cancel.reason, 'cancelled'),
                                     coalesce(outbox.actor_named(cancel.cancelled_by), outbox.actor()));
    END IF;
    RETURN target;
END
$$;
COMMENT ON FUNCTION outbox.cancel(text, text, text, text) IS
    'Moves a workflow that has not ended to the status that its pipeline has for cancelled ones, and returns that status. '
    'Its job, questions and waits end; so do the children that it waits for, if their pipelines have such a status.';
REVOKE EXECUTE ON FUNCTION outbox.cancel(text, text, text, text) FROM PUBLIC;
